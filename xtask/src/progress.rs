//! Runs a long command with one line of progress instead of its log.
//!
//! Cargo reports its progress on a terminal only, so this requests it (`CARGO_TERM_PROGRESS_WHEN`) and reads it from a pipe.
//! On a terminal the line is overwritten every second; elsewhere a new one is printed every half a minute. The whole log
//! goes to a file, and after a failure to standard error; with `--verbose` the log is shown and nothing else.

use std::fs::{self, File};
use std::io::{IsTerminal, Read, Write, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::shell::{display, exec, target_dir};

static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Shows the output of all commands from now on.
pub fn set_verbose() {
    VERBOSE.store(true, Ordering::Relaxed);
}

/// Time between two lines on a terminal, where the second replaces the first.
const ON_TERMINAL: Duration = Duration::from_secs(1);
/// Time between two lines elsewhere, where both remain.
const IN_LOG: Duration = Duration::from_secs(30);
/// The longest line, in characters.
const WIDTH: usize = 100;

/// Runs `command` and waits for its end. `what` names the work in the line and the file of the log.
///
/// # Errors
/// The command can't run, or fails; then its log is printed.
pub fn run(command: &mut Command, what: &str) -> Result<()> {
    if VERBOSE.load(Ordering::Relaxed) {
        return exec(command);
    }
    let log = log_of(what)?;
    let result = shown(command, what, &log);
    if result.is_err() {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let shown = without_routine(&text);
        // If it can't be printed, for example because the disk is full, the error remains.
        let _printed = writeln!(
            stderr(),
            "{shown}{what}: the whole log is {}",
            log.display()
        );
    }
    result
}

/// Runs `command` in the same way, without printing its log if it fails.
///
/// # Errors
/// The command can't run, or fails.
pub fn attempt(command: &mut Command, what: &str) -> Result<()> {
    shown(command, what, &log_of(what)?)
}

fn log_of(what: &str) -> Result<PathBuf> {
    let directory = target_dir().join("xtask");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory.join(format!("{}.log", what.replace([' ', '/'], "-"))))
}

fn shown(command: &mut Command, what: &str, log: &Path) -> Result<()> {
    let name = display(command);
    let file =
        File::create(log).with_context(|| format!("cannot write the log {}", log.display()))?;
    let started = Instant::now();
    let mut child = command
        .env("CARGO_TERM_PROGRESS_WHEN", "always")
        .env("CARGO_TERM_PROGRESS_WIDTH", "200")
        .env("CARGO_TERM_COLOR", "never")
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("the log")?)
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{name}`"))?;
    let (sender, receiver) = mpsc::channel();
    let pipe = child.stderr.take().context("no pipe")?;
    let reader = thread::spawn(move || follow(pipe, file, &sender));
    let terminal = stderr().is_terminal();
    let every = if terminal { ON_TERMINAL } else { IN_LOG };
    let (mut status, mut last, mut next) = (Status::default(), String::new(), started + every);
    loop {
        match receiver.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(segment) => status.update(&segment),
            Err(RecvTimeoutError::Timeout) => {
                last = line(what, &status, started.elapsed());
                // Standard error may be closed; the work continues.
                let _shown = match terminal {
                    true => write!(stderr(), "\r{last:WIDTH$}"),
                    false => writeln!(stderr(), "{last}"),
                };
                next += every;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if terminal && !last.is_empty() {
        let _cleared = write!(stderr(), "\r{:WIDTH$}\r", "");
    }
    let result = child.wait()?;
    if reader.join().is_err() {
        bail!("cannot follow `{name}`");
    }
    if !result.success() {
        bail!("`{name}` failed ({result})");
    }
    println!(
        "{what}: done after {:.0} s",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Splits what cargo writes at line ends and carriage returns; passes each part on, and writes all but reports of progress
/// to the log. Ends when the pipe is closed.
fn follow(mut pipe: impl Read, mut log: impl Write, to: &Sender<String>) {
    let mut buffer = [0; 8192];
    let mut rest = Vec::new();
    while let Ok(count) = pipe.read(&mut buffer) {
        if count == 0 {
            break;
        }
        for byte in &buffer[..count] {
            if !matches!(byte, b'\n' | b'\r') {
                rest.push(*byte);
                continue;
            }
            let segment = String::from_utf8_lossy(&rest).trim_end().to_owned();
            rest.clear();
            if segment.trim().is_empty() {
                continue;
            }
            if Progress::parse(&segment).is_none() {
                let _logged = writeln!(log, "{segment}");
            }
            let _received = to.send(segment);
        }
    }
}

/// The current activity of a command.
#[derive(Debug, Default, PartialEq)]
struct Status {
    progress: Option<Progress>,
    /// The last line, for commands without progress.
    text: String,
}

impl Status {
    fn update(&mut self, segment: &str) {
        match Progress::parse(segment) {
            Some(progress) => self.progress = Some(progress),
            None => self.text = segment.trim().to_owned(),
        }
    }
}

/// Cargo's progress: `Building [==>   ] 12/380: ring, tokio`.
#[derive(Debug, PartialEq)]
struct Progress {
    done: u32,
    total: u32,
    /// What is built now.
    now: String,
}

impl Progress {
    fn parse(segment: &str) -> Option<Self> {
        let (verb, rest) = segment.trim_start().split_once(" [")?;
        let (bar, rest) = rest.split_once("] ")?;
        let is_bar = bar.chars().all(|mark| matches!(mark, '=' | '>' | ' '));
        if !is_bar || verb.contains(' ') {
            return None;
        }
        let end = rest.find([':', ',']).unwrap_or(rest.len());
        let (done, total) = rest[..end].trim_end().split_once('/')?;
        Some(Self {
            done: done.parse().ok()?,
            total: total.parse().ok()?,
            now: rest[end..].trim_start_matches([':', ',', ' ']).to_owned(),
        })
    }
}

fn line(what: &str, status: &Status, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let text = match &status.progress {
        Some(Progress { done, total, now }) => {
            format!("{what}: {done} of {total}, {seconds} s: {now}")
        }
        None => format!("{what}: {seconds} s: {}", status.text),
    };
    text.chars().take(WIDTH).collect()
}

/// The log without the lines that cargo writes for each crate.
fn without_routine(log: &str) -> String {
    const ROUTINE: [&str; 4] = ["Compiling ", "Downloaded ", "Downloading ", "Locking "];
    log.lines()
        .filter(|line| {
            !ROUTINE
                .iter()
                .any(|word| line.trim_start().starts_with(word))
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_progress_is_recognised() {
        let progress = Progress::parse("    Building [====>     ] 12/380: ring, tokio(build)");
        let now = "ring, tokio(build)".to_owned();
        assert_eq!(
            progress,
            Some(Progress {
                done: 12,
                total: 380,
                now
            })
        );
        let progress = Progress::parse(" Downloading [=>   ] 3/10, remaining bytes: 1.2MB");
        assert_eq!(progress.map(|it| (it.done, it.total)), Some((3, 10)));
        for other in [
            "   Compiling ring v0.17.14",
            "warning: unused [] 1/2",
            "error[E0308]: mismatched types",
            "",
        ] {
            assert_eq!(Progress::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_line_shows_what_how_many_and_the_time() {
        let mut status = Status::default();
        status.update("   Compiling ring v0.17.14");
        let ten = Duration::from_secs(10);
        assert_eq!(
            line("build", &status, ten),
            "build: 10 s: Compiling ring v0.17.14"
        );
        status.update("    Building [====>     ] 12/380: ring, tokio");
        status.update("   Compiling tokio v1.50.0");
        assert_eq!(
            line("build", &status, ten),
            "build: 12 of 380, 10 s: ring, tokio"
        );
        status.update(&format!(
            "    Building [====>     ] 12/380: {}",
            "é".repeat(300)
        ));
        assert_eq!(line("build", &status, ten).chars().count(), WIDTH);
    }

    #[test]
    fn progress_is_followed_and_not_logged() {
        let written = b"   Compiling a v1\n    Building [>  ] 0/2: a\r    Building [=> ] 1/2: b\r\nerror: no\n";
        let (sender, receiver) = mpsc::channel();
        let mut log = Vec::new();
        follow(&written[..], &mut log, &sender);
        drop(sender);
        assert_eq!(
            String::from_utf8_lossy(&log),
            "   Compiling a v1\nerror: no\n"
        );
        assert_eq!(receiver.iter().count(), 4);
    }

    #[test]
    fn after_a_failure_only_what_matters_is_shown() {
        let log = "   Compiling a v1\nerror: no\n  --> src/main.rs\n";
        assert_eq!(without_routine(log), "error: no\n  --> src/main.rs\n");
    }

    #[test]
    fn a_command_that_fails_is_an_error_that_names_it() {
        let log = tempfile::NamedTempFile::new().expect("file");
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo why >&2; exit 3"]);
        let error = shown(&mut command, "work", log.path()).expect_err("fails");
        assert!(error.to_string().contains("exit 3"), "{error}");
        let text = fs::read_to_string(log.path()).expect("log");
        assert!(text.contains("out") && text.contains("why"), "{text}");
    }
}
