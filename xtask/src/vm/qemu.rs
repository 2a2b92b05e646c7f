//! Runs qemu: boots a kernel with an initramfs.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::watch::{Boot, Limits, Logs, Running, lines_of, watch};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// Memory of a guest in MiB: twice what the suite needs for its hundred pods at once.
pub const MEMORY: u64 = 1536;
/// With kvm a kernel boots in a second or two.
const TRIAL: Duration = Duration::from_secs(10);
/// How the guest's processor is virtualised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// By hardware virtualisation (kvm).
    Kvm,
    /// By emulation, at least ten times slower.
    Tcg,
}

impl Accelerator {
    /// kvm if this kernel boots with it, else emulation.
    pub fn find(image: &Path) -> Self {
        // kvm is tried, because in some virtual machines the kvm device exists but cannot run an ordinary
        // kernel.
        match kvm_works(image) {
            Ok(true) => Self::Kvm,
            _ => Self::Tcg,
        }
    }

    /// The kernel command line.
    fn command_line(self, kernel_path: bool) -> String {
        // An emulated processor is about ten times slower, so the suite stretches its times (testbed's `pace`).
        let pace = match self {
            Self::Kvm => 1,
            Self::Tcg => 5,
        };
        // no_timer_check: an emulated timer may miss ticks while this machine is busy, and the kernel would
        // panic ("IO-APIC + timer doesn't work"). For the same reason the kernel must not calibrate its time
        // stamp counter, because with a wrong frequency hours could pass in a minute; it uses hpet instead.
        // The lockup detector triggers after two minutes instead of twenty seconds. panic=-1 restarts at
        // once, and -no-reboot makes qemu exit instead. The kernel passes unknown parameters to its first
        // process as environment.
        format!(
            "console=ttyS0 no_timer_check tsc=unstable watchdog_thresh=60 panic=-1 oops=panic random.trust_cpu=on mitigations=off TESTBED_PACE={pace} \
             PROBE_HANDLER_KERNEL_PATH={kernel_path} rdinit=/bin/testbed -- guest"
        )
    }

    /// Its name in qemu.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Whether kvm boots a kernel: without a root file system the boot ends in a panic.
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

/// A qemu command without devices.
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
    /// How its processor is virtualised.
    pub accelerator: Accelerator,
    /// Processors.
    pub processors: u32,
    /// Whether the daemons of the suite use the kernel path if the case does not set it.
    pub kernel_path: bool,
    /// The log files of the kernel and the guest.
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
            // The kernel has a separate serial line, so that its messages do not split the suite's lines.
            .arg("-serial")
            .arg(format!("file:{}", self.logs.kernel.display()))
            .args(["-serial", "stdio"])
            .arg("-append")
            .arg(self.accelerator.command_line(self.kernel_path))
            .stderr(Stdio::piped());
        command
    }

    /// Boots the machine and waits for its end; passes every line of the guest's processes to `each`.
    ///
    /// # Errors
    /// When qemu can't be started or its logs can't be written.
    pub fn boot(&self, each: impl FnMut(&str)) -> Result<Boot> {
        watch(&mut self.command(), &self.logs, Limits::default(), each)
    }
}
