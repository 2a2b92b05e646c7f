//! `testbed guest`: the first process of a virtual machine that has no distribution. Makes a node of it,
//! runs the suite, says on the console how that ended, and switches the machine off.
//!
//! Everything that `cargo xtask test vm` reads is a line of its own on `CONSOLE`: the suite's lines as they
//! are, and those of this process with `MARK` before them.

mod modules;
mod mounts;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

/// The second serial line; the kernel has the first for itself, and tears no line here.
const CONSOLE: &str = "/dev/ttyS1";
/// Begins a line of this process.
const MARK: &str = "guest: ";
/// Arguments for the suite, one a line.
const ARGUMENTS: &str = "/suite-arguments";

/// In the environment of a suite that has the machine for itself.
const HERE: &str = "TESTBED_GUEST";

/// Whether this machine is a virtual one, made for the suite and thrown away after it.
pub fn is_here() -> bool {
    std::env::var_os(HERE).is_some()
}

/// Never returns from a machine that it could switch off.
///
/// # Errors
/// When this is not the first process, or the machine does not end.
pub fn main() -> Result<()> {
    if std::process::id() != 1 {
        bail!("only the first process of a virtual machine may do this: `cargo xtask test vm`");
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
        // The kernel's console is all that is left.
        eprintln!("{ending}");
    }
    nix::unistd::sync();
    match reboot(RebootMode::RB_POWER_OFF).context("switching the machine off")? {}
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
    // Without these figures the suite runs all the same, and says what the kernel refuses.
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

/// Waits for the suite's end; whatever process lost its parent is waited for too.
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
