//! Stops one thread of a process, as if it were in an endless loop or a system call that does not return. Uses
//! ptrace(2), because a signal would stop all threads.

use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Polling interval for the end of the thread's process.
const LOOK: Duration = Duration::from_millis(5);

/// A thread that is stopped until the value is dropped or its process ends.
#[derive(Debug)]
pub struct Frozen {
    go_on: Option<Sender<()>>,
    tracer: Option<JoinHandle<Result<()>>>,
}

impl Frozen {
    /// Freezes the thread called `name` of process `pid`.
    ///
    /// # Errors
    /// When there is none, or it can't be traced.
    pub fn thread(pid: u32, name: &str) -> Result<Self> {
        let thread = find(pid, name)?;
        let (go_on, told) = mpsc::channel();
        let (frozen, is_frozen) = mpsc::channel();
        // The tracer is a thread, which must exist as long as the tracing.
        let tracer = thread::spawn(move || -> Result<()> {
            let stopped = ptrace::seize(thread, ptrace::Options::empty())
                .and_then(|()| ptrace::interrupt(thread))
                .and_then(|()| waitpid(thread, Some(WaitPidFlag::__WALL)));
            let frozen_now = stopped.is_ok();
            let _nobody_waits = frozen.send(stopped.map(drop));
            while frozen_now && told.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
                // The process can't be waited for before its traced thread has been.
                if let WaitStatus::Exited(..) | WaitStatus::Signaled(..) =
                    waitpid(thread, Some(flags))?
                {
                    return Ok(());
                }
            }
            ptrace::detach(thread, None).context("letting the thread go on")
        });
        is_frozen
            .recv()
            .context("the tracer ended")?
            .with_context(|| format!("stopping thread {thread}"))?;
        Ok(Self {
            go_on: Some(go_on),
            tracer: Some(tracer),
        })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.go_on.take());
        let ended = self.tracer.take().map(JoinHandle::join);
        if let Some(Err(error)) =
            ended.map(|ended| ended.unwrap_or_else(|_| Err(anyhow!("panicked"))))
        {
            eprintln!("testbed: {error:#}");
        }
    }
}

fn find(pid: u32, name: &str) -> Result<Pid> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        // A thread that has ended has no name.
        let Ok(found) = fs::read_to_string(task.path().join("comm")) else {
            continue;
        };
        if found.trim_end() == name {
            let id = task.file_name().to_string_lossy().parse()?;
            return Ok(Pid::from_raw(id));
        }
    }
    Err(anyhow!("process {pid} has no thread {name}"))
}
