//! The test's side of the RPC with a child process: an app, a sidecar or a kubelet.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::rpc::Message;
use crate::{interrupt, pace};

/// How soon a wait notices an interruption.
const INTERRUPTIBLE: Duration = Duration::from_millis(50);
/// How long a child may take to become ready.
const READY: Duration = Duration::from_secs(10);

type Waiting = Arc<Mutex<HashMap<u64, mpsc::Sender<Value>>>>;

/// A running child, killed on drop.
#[derive(Debug)]
pub struct Worker {
    what: String,
    child: Child,
    input: Mutex<ChildStdin>,
    waiting: Waiting,
    next_id: AtomicU64,
    ready: Value,
}

/// A response that has not arrived yet.
#[derive(Debug)]
pub struct Pending {
    what: String,
    answer: mpsc::Receiver<Value>,
}

impl Worker {
    /// Starts `command` and waits for its first line, which reports that it is ready.
    ///
    /// # Errors
    /// When it cannot be started, ends at once, or is not ready within 10 s.
    pub fn start(what: &str, command: &mut Command) -> Result<Self> {
        let mut child = command
            // Ctrl-C must reach only the run, which ends its children in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {what}"))?;
        let input = child.stdin.take().context("the child has no input")?;
        let output = child.stdout.take().context("the child has no output")?;
        let waiting = Waiting::default();
        let (first, ready) = mpsc::channel();
        let answers = Arc::clone(&waiting);
        let _reader = thread::Builder::new()
            .name(format!("{what} lines"))
            .spawn(move || read_lines(BufReader::new(output), &first, &answers))?;
        let ready = match ready.recv_timeout(pace::stretch(READY)) {
            Ok(value) => value,
            Err(_) => {
                let _gone = child.kill();
                let status = child.wait()?;
                bail!("{what} did not become ready ({status}); see its output above");
            }
        };
        Ok(Self {
            what: what.to_owned(),
            child,
            input: Mutex::new(input),
            waiting,
            next_id: AtomicU64::new(1),
            ready,
        })
    }

    /// The content of the child's first line.
    ///
    /// # Errors
    /// When it is not a `T`.
    pub fn ready<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(self.ready.clone())
            .with_context(|| format!("{}: cannot parse its first line", self.what))
    }

    /// Process id of the child.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a request; the response can be awaited later.
    ///
    /// # Errors
    /// When the child has ended.
    pub fn send(&self, request: &impl Serialize) -> Result<Pending> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = mpsc::channel();
        let _none = lock(&self.waiting).insert(id, sender);
        let body = serde_json::to_value(request)?;
        let mut line = serde_json::to_vec(&Message { id, body })?;
        line.push(b'\n');
        lock(&self.input)
            .write_all(&line)
            .with_context(|| format!("{} has ended", self.what))?;
        Ok(Pending {
            what: self.what.clone(),
            answer,
        })
    }

    /// Sends a request and waits for its response, at most `deadline`.
    ///
    /// # Errors
    /// When the child has ended or does not answer in time.
    pub fn ask<T: DeserializeOwned>(
        &self,
        request: &impl Serialize,
        deadline: Duration,
    ) -> Result<T> {
        self.send(request)?.wait(deadline)
    }

    /// Kills the child and waits for its end.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        let _gone = self.child.kill();
        Ok(self.child.wait()?)
    }
}

impl Pending {
    /// Waits for the response, at most `deadline`.
    ///
    /// # Errors
    /// When the child has ended, does not answer in time, or the run is interrupted.
    pub fn wait<T: DeserializeOwned>(self, deadline: Duration) -> Result<T> {
        let deadline = pace::stretch(deadline);
        let end = Instant::now() + deadline;
        let value = loop {
            match self.answer.recv_timeout(INTERRUPTIBLE) {
                Ok(value) => break value,
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("{} has ended", self.what),
                Err(mpsc::RecvTimeoutError::Timeout) => interrupt::check()?,
            }
            if Instant::now() >= end {
                bail!("{} did not answer within {deadline:?}", self.what);
            }
        };
        serde_json::from_value(value)
            .with_context(|| format!("{}: cannot parse its response", self.what))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("testbed: ending {}: {error:#}", self.what);
        }
    }
}

/// The `testbed` program: this process, or the one built beside a test.
///
/// # Errors
/// When there is none.
pub fn testbed_program() -> Result<PathBuf> {
    sibling("testbed")
}

/// A program of this workspace in the directory of the running one, or the directory above it (the
/// tests run from `deps/`).
///
/// # Errors
/// When it has not been built.
pub fn sibling(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("where this program is")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not beside {}: build it first", own.display()))
}

fn read_lines(lines: impl BufRead, first: &mpsc::Sender<Value>, waiting: &Waiting) {
    let mut values = lines.lines().map_while(Result::ok).filter_map(|line| {
        match serde_json::from_str::<Value>(&line) {
            Ok(value) => Some(value),
            Err(_) => {
                eprintln!("{line}");
                None
            }
        }
    });
    if let Some(ready) = values.next() {
        let _not_waiting = first.send(ready);
    }
    for value in values {
        let Ok(Message { id, body }) = serde_json::from_value(value) else {
            continue;
        };
        if let Some(sender) = lock(waiting).remove(&id) {
            let _not_waiting = sender.send(body);
        }
    }
    // The child has ended: dropping the senders ends all waits.
    lock(waiting).clear();
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
