//! `testbed demo --keep`: the commands that it prints have the announced results.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cases::Cases;
use crate::run::Run;
use crate::{wait, worker};

/// Time for two rounds of probes and the daemon's start.
const UP: Duration = Duration::from_secs(60);
const DOWN: Duration = Duration::from_secs(20);

pub fn run(cases: &mut Cases) -> Result<()> {
    let daemon = cases.daemon().map(Path::to_path_buf);
    cases.case("what-it-gives-to-try", || to_try(daemon.as_deref()));
    Ok(())
}

fn to_try(daemon: Option<&Path>) -> Result<()> {
    let run = Run::new()?;
    let log = run.dir().join("demo.out");
    let mut command = Command::new(worker::testbed_program()?);
    command.args(["demo", "--keep"]).stdin(Stdio::null());
    if let Some(daemon) = daemon {
        command.arg("--daemon").arg(daemon);
    }
    let mut demo = Ended(command.stdout(File::create(&log)?).spawn()?);

    let mut ended = None;
    let said = wait::until("the demo's commands", UP, || {
        ended = demo.0.try_wait().ok().flatten();
        let said = fs::read_to_string(&log).unwrap_or_default();
        (ended.is_some() || said.contains("other files of this run")).then_some(said)
    })?;
    if let Some(status) = ended {
        bail!("the demo ended with {status}:\n{said}");
    }
    let (_, to_try) = said
        .split_once("Commands to try:")
        .context("the demo printed no commands")?;
    let commands: Vec<&str> = to_try
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .collect();

    let mut as_kubelet = 0;
    for command in commands {
        let Output {
            status,
            stdout,
            stderr,
        } = Command::new("sh").args(["-c", command]).output()?;
        let said = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        let by_kubelet = command.contains("--kubelet");
        let closed = command.contains("tcp://");
        let fails = closed || (command.contains(" probe ") && !by_kubelet);
        ensure!(status.success() != fails, "{command}: {status}:\n{said}");
        // The group `versions` checks which of the two occurs on which kernel.
        let refused = said.contains("refused") || said.contains("Operation not permitted");
        ensure!(!closed || refused, "{command}:\n{said}");
        as_kubelet += usize::from(by_kubelet && !closed);
    }
    ensure!(as_kubelet == 2, "expected probes of two pods:\n{to_try}");

    kill(Pid::from_raw(demo.0.id().cast_signed()), Signal::SIGINT)?;
    let _status = wait::until("the demo's end", DOWN, || demo.0.try_wait().ok().flatten())?;
    Ok(())
}

/// A demo, killed on drop if it still runs.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Fails if it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
