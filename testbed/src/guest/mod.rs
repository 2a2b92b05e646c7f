//! `testbed guest`: the first process of a virtual machine without a distribution. Sets up the machine as a
//! node, runs the suite, prints its result on the console, and powers the machine off.
//!
//! `cargo xtask test vm` reads lines from `CONSOLE`: the suite's lines unchanged, and those of this process
//! with the prefix `MARK`.

mod modules;
mod mounts;

pub use modules::without as without_module;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

/// The second serial line. The kernel uses the first, so that its messages do not split lines here.
const CONSOLE: &str = "/dev/ttyS1";
/// Prefix of this process's lines.
const MARK: &str = "guest: ";
/// Arguments for the suite, one per line.
const ARGUMENTS: &str = "/suite-arguments";

/// Environment variable of a suite that runs in a dedicated machine.
const HERE: &str = "TESTBED_GUEST";

/// Whether this machine is a virtual machine that exists only for the suite.
pub fn is_here() -> bool {
    std::env::var_os(HERE).is_some()
}

/// Runs the suite and powers the machine off; returns only if that fails.
///
/// # Errors
/// When this is not the first process, or the machine does not power off.
pub fn main() -> Result<()> {
    if std::process::id() != 1 {
        bail!(
            "this command runs only as first process of a virtual machine: use `cargo xtask test vm`"
        );
    }
    let outcome = node();
    let ending = match &outcome {
        Ok(ending) => format!("{MARK}the suite {ending}"),
        Err(error) => format!("{MARK}error: {error:#}"),
    };
    if console()
        .and_then(|mut console| say(&mut console, &ending))
        .is_err()
    {
        // Only the kernel's console remains.
        eprintln!("{ending}");
    }
    nix::unistd::sync();
    match reboot(RebootMode::RB_POWER_OFF).context("powering the machine off")? {}
}

fn node() -> Result<String> {
    mounts::all()?;
    let mut console = console()?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    say(&mut console, &format!("{MARK}kernel {}", release.trim()))?;
    for fault in modules::load()? {
        say(&mut console, &format!("{MARK}module {fault}"))?;
    }
    crate::command::ip_batch("link set lo up\n")?;
    // Without these figures the suite still runs, and reports what the kernel refuses.
    match crate::verifier::processed() {
        Ok(programs) => {
            for (name, instructions) in programs {
                say(
                    &mut console,
                    &format!("{MARK}verifier {name} {instructions}"),
                )?;
            }
        }
        Err(error) => say(
            &mut console,
            &format!("{MARK}no verifier figures: {error:#}"),
        )?,
    }
    let output = || -> Result<Stdio> { Ok(Stdio::from(console.try_clone()?)) };
    let status = Command::new(crate::worker::testbed_program()?)
        .arg("suite")
        .env(HERE, "1")
        .args(fs::read_to_string(ARGUMENTS).context(ARGUMENTS)?.lines())
        .stdin(Stdio::null())
        .stdout(output()?)
        .stderr(output()?)
        .spawn()
        .context("starting the suite")?
        .id();
    end_of(Pid::from_raw(i32::try_from(status)?))
}

/// Waits for the suite's end; also reaps orphaned processes.
fn end_of(suite: Pid) -> Result<String> {
    loop {
        match wait().context("waiting for the suite")? {
            WaitStatus::Exited(pid, code) if pid == suite => {
                return Ok(format!("exited with {code}"));
            }
            WaitStatus::Signaled(pid, signal, _) if pid == suite => {
                return Ok(format!("was killed by {signal}"));
            }
            _ => {}
        }
    }
}

fn console() -> Result<File> {
    OpenOptions::new()
        .write(true)
        .open(CONSOLE)
        .context(CONSOLE)
}

fn say(console: &mut File, line: &str) -> Result<()> {
    console
        .write_all(format!("{line}\n").as_bytes())
        .context(CONSOLE)
}
