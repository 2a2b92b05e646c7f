//! qemu: the machine that boots a kernel with an initramfs.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::watch::{Boot, Limits, Logs, Running, lines_of, watch};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// Memory of a guest, in MiB: the suite's hundred pods at once, twice over.
pub const MEMORY: u64 = 1536;
/// On kvm a kernel is up in a second or two.
const TRIAL: Duration = Duration::from_secs(10);
/// How the guest's processor is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// By this machine's own.
    Kvm,
    /// By emulation, ten times slower and more.
    Tcg,
}

impl Accelerator {
    /// kvm if a machine with this kernel comes up on it, else emulation.
    pub fn find(image: &Path) -> Self {
        // A device may be there and yet run no ordinary kernel, as in some virtual machines: it is tried.
        match kvm_works(image) {
            Ok(true) => Self::Kvm,
            _ => Self::Tcg,
        }
    }

    /// What the kernel is told.
    fn command_line(self) -> String {
        // An emulated processor is some ten times slower: the suite stretches its times (testbed's `pace`).
        let pace = match self {
            Self::Kvm => 1,
            Self::Tcg => 5,
        };
        // no_timer_check: an emulated timer may miss its ticks while this machine is busy, and the kernel would
        // panic ("IO-APIC + timer doesn't work"). For the same reason it must not measure its time stamp
        // counter, by which hours could pass in a minute: it has a better clock (hpet). And a lockup is one
        // after two minutes, not twenty seconds.
        // panic=-1 restarts at once, which -no-reboot makes the end. What the kernel does not know it gives
        // its first process, as environment.
        format!(
            "console=ttyS0 no_timer_check tsc=unstable watchdog_thresh=60 panic=-1 oops=panic random.trust_cpu=on mitigations=off TESTBED_PACE={pace} \
             rdinit=/bin/testbed -- guest"
        )
    }

    /// Its name to qemu.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Whether a kernel without root file system gets as far as its panic.
fn kvm_works(image: &Path) -> Result<bool> {
    let _openable = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let mut command = bare(Accelerator::Kvm);
    command
        .arg("-kernel")
        .arg(image)
        .args(["-serial", "stdio", "-append", "console=ttyS0 panic=-1"])
        .stderr(Stdio::null());
    let mut child = Running(command.spawn()?);
    let lines = lines_of(&mut child.0)?;
    let end = Instant::now() + TRIAL;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        match lines.recv_timeout(left) {
            Ok(line) if line.contains("Kernel panic") => return Ok(true),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    Ok(false)
}

/// qemu without devices.
fn bare(accelerator: Accelerator) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-accel", accelerator.name()])
        .args([
            "-cpu",
            if accelerator == Accelerator::Kvm {
                "host"
            } else {
                "max"
            },
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// A machine to boot.
#[derive(Debug)]
pub struct Machine<'a> {
    /// The kernel.
    pub image: &'a Path,
    /// Its root file system.
    pub initramfs: &'a Path,
    /// How its processor is made.
    pub accelerator: Accelerator,
    /// Processors.
    pub processors: u32,
    /// Where the kernel's and the guest's lines are kept.
    pub logs: Logs,
}

impl Machine<'_> {
    fn command(&self) -> Command {
        let mut command = bare(self.accelerator);
        command
            .args([
                "-smp",
                &self.processors.to_string(),
                "-m",
                &MEMORY.to_string(),
            ])
            .arg("-kernel")
            .arg(self.image)
            .arg("-initrd")
            .arg(self.initramfs)
            // The kernel has a line for itself, so that it tears none of the suite's.
            .arg("-serial")
            .arg(format!("file:{}", self.logs.kernel.display()))
            .args(["-serial", "stdio"])
            .arg("-append")
            .arg(self.accelerator.command_line())
            .stderr(Stdio::piped());
        command
    }

    /// Boots it and waits for its end; `each` gets every line of the guest's processes.
    ///
    /// # Errors
    /// When qemu can't be started or its logs can't be written.
    pub fn boot(&self, each: impl FnMut(&str)) -> Result<Boot> {
        watch(&mut self.command(), &self.logs, Limits::default(), each)
    }
}
