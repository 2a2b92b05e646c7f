//! Watches a guest until it ends, and ends it if it hangs or its kernel has crashed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::console::{Report, is_fatal};
use crate::shell::display;

/// How many of the last lines of kernel and guest are shown when a guest does not end normally.
const LAST: usize = 25;

/// Time limits of a guest.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A guest without output for this long hangs.
    pub silence: Duration,
    /// The longest run, even with output.
    pub longest: Duration,
    /// How long a crashed kernel may still print the reason.
    pub last_words: Duration,
    /// How often the kernel's log is checked while the guest has no output.
    pub look: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // On an emulated processor no case takes half of it, unless this machine is stalled.
            silence: Duration::from_secs(300),
            longest: Duration::from_secs(60 * 60),
            last_words: Duration::from_secs(3),
            look: Duration::from_secs(1),
        }
    }
}

/// The files of one boot.
#[derive(Clone, Debug)]
pub struct Logs {
    /// The kernel's log (first serial line).
    pub kernel: PathBuf,
    /// The output of the guest's processes (second serial line).
    pub guest: PathBuf,
}

/// How a boot ended.
#[derive(Debug)]
pub struct Boot {
    /// What the guest's output contained.
    pub report: Report,
    /// From qemu's start to its end.
    pub took: Duration,
    /// Why it counts as failed regardless of the suite's result, with the last lines of kernel and guest.
    pub trouble: Option<String>,
}

const CRASHED: &str = "the kernel has crashed";

/// Runs a machine that prints the output of its guest's processes and writes the kernel's log to a file; passes every
/// line of the processes to `each`.
///
/// # Errors
/// When it can't be started or its logs can't be written.
pub fn watch(
    machine: &mut Command,
    logs: &Logs,
    limits: Limits,
    mut each: impl FnMut(&str),
) -> Result<Boot> {
    let start = Instant::now();
    let mut log = File::create(&logs.guest).context("the guest's log")?;
    let _emptied = File::create(&logs.kernel).context("the kernel's log")?;
    let mut child = Running(
        machine
            .spawn()
            .with_context(|| format!("cannot run `{}`", display(machine)))?,
    );
    let lines = lines_of(&mut child.0)?;
    let mut report = Report::default();
    let mut last_heard = Instant::now();
    let mut kernel = Kernel::new(&logs.kernel);
    let mut past_help: Option<Instant> = None;
    let trouble = loop {
        match lines.recv_timeout(limits.look) {
            Ok(line) => {
                last_heard = Instant::now();
                writeln!(log, "{:7.1} {line}", start.elapsed().as_secs_f64())?;
                report.line(&line);
                each(&line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break None,
        }
        if past_help.is_none() && kernel.has_crashed() {
            past_help = Some(Instant::now());
        }
        if past_help.is_some_and(|since| since.elapsed() > limits.last_words) {
            break Some(CRASHED.to_owned());
        }
        if last_heard.elapsed() > limits.silence {
            let seconds = limits.silence.as_secs_f64();
            break Some(format!("it hangs: no output for {seconds} s"));
        }
        if start.elapsed() > limits.longest {
            let seconds = limits.longest.as_secs_f64();
            break Some(format!("not finished after {seconds} s"));
        }
    };
    let trouble = match trouble {
        Some(trouble) => Some(trouble),
        None => {
            let status = child.0.wait()?;
            // A panic restarts the machine, and qemu then exits normally.
            if past_help.is_some() || kernel.has_crashed() {
                Some(CRASHED.into())
            } else if !status.success() {
                Some(format!("qemu ended with {status}"))
            } else if report.ended.is_none() {
                Some("the machine ended before the suite did".into())
            } else {
                None
            }
        }
    };
    Ok(Boot {
        report,
        took: start.elapsed(),
        trouble: trouble.map(|what| format!("{what}\n{}", logs.last_lines())),
    })
}

/// A running qemu, killed on drop.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// The lines of qemu's standard output (the second serial line) and standard error.
///
/// # Errors
/// When its output is not piped.
pub fn lines_of(child: &mut Child) -> Result<Receiver<String>> {
    let (sender, lines) = channel();
    let output = child.stdout.take().context("qemu has no output")?;
    if let Some(errors) = child.stderr.take() {
        let sender = sender.clone();
        let _reader = thread::spawn(move || forward_lines(errors, &sender));
    }
    let _reader = thread::spawn(move || forward_lines(output, &sender));
    Ok(lines)
}

fn forward_lines(from: impl Read, to: &Sender<String>) {
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if to.send(line).is_err() {
            return;
        }
    }
}

/// Checks the kernel's log when it has grown.
struct Kernel<'a> {
    path: &'a Path,
    length: u64,
}

impl<'a> Kernel<'a> {
    fn new(path: &'a Path) -> Self {
        Self { path, length: 0 }
    }

    fn has_crashed(&mut self) -> bool {
        let length = fs::metadata(self.path).map_or(0, |data| data.len());
        if length == self.length {
            return false;
        }
        self.length = length;
        let text = fs::read(self.path).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().any(is_fatal)
    }
}

impl Logs {
    /// The log files of a guest with this name.
    pub fn new(directory: &Path, name: &str) -> Self {
        Self {
            kernel: directory.join(format!("{name}.kernel.log")),
            guest: directory.join(format!("{name}.log")),
        }
    }

    fn last_lines(&self) -> String {
        let mut text = String::new();
        for (what, path) in [("kernel", &self.kernel), ("guest", &self.guest)] {
            let said = fs::read(path).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            let lines: Vec<&str> = said.lines().collect();
            text.push_str(&format!(
                "  last lines of the {what} ({}):\n",
                path.display()
            ));
            for line in &lines[lines.len().saturating_sub(LAST)..] {
                text.push_str(&format!("  | {}\n", line.trim_end()));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests;
