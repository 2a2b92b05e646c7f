//! One boot: qemu with kernel and initramfs, watched until it ends or must be ended.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::console::{Report, is_fatal};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// Memory of a guest, in MiB: the suite's hundred pods at once, twice over.
pub const MEMORY: u64 = 1536;
/// On kvm a kernel is up in a second or two.
const TRIAL: Duration = Duration::from_secs(10);
/// A guest that says nothing for so long hangs: no case takes half of it on an emulated processor.
const SILENCE: Duration = Duration::from_secs(180);
/// How long a kernel that is past help may still say why.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// However much it says, it must end.
const LONGEST: Duration = Duration::from_secs(40 * 60);
/// How many of the kernel's and of the guest's last lines are shown when a guest ends otherwise than in order.
const LAST: usize = 25;

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

/// The files of one boot.
#[derive(Clone, Debug)]
pub struct Logs {
    /// What the kernel says (first serial line).
    pub kernel: PathBuf,
    /// What the guest's processes say (second serial line).
    pub guest: PathBuf,
}

/// How a boot ended.
#[derive(Debug)]
pub struct Boot {
    /// What the guest said.
    pub report: Report,
    /// From qemu's start to its end.
    pub took: Duration,
    /// Why it counts as failed whatever the suite said, with the last lines of kernel and guest.
    pub trouble: Option<String>,
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
    pub fn boot(&self, mut each: impl FnMut(&str)) -> Result<Boot> {
        let start = Instant::now();
        let mut log = File::create(&self.logs.guest).context("the guest's log")?;
        let _emptied = File::create(&self.logs.kernel).context("the kernel's log")?;
        let mut child = Running(
            self.command()
                .spawn()
                .with_context(|| format!("cannot run {PROGRAM}"))?,
        );
        let lines = lines_of(&mut child.0)?;
        let mut report = Report::default();
        let mut last_heard = Instant::now();
        let mut kernel = Kernel::new(&self.logs.kernel);
        let mut past_help: Option<Instant> = None;
        let trouble = loop {
            match lines.recv_timeout(Duration::from_secs(1)) {
                Ok(line) => {
                    last_heard = Instant::now();
                    writeln!(log, "{:7.1} {line}", start.elapsed().as_secs_f64())?;
                    report.line(&line);
                    each(&line);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break None,
            }
            if past_help.is_none() && kernel.is_past_help() {
                past_help = Some(Instant::now());
            }
            if past_help.is_some_and(|since| since.elapsed() > LAST_WORDS) {
                break Some("the kernel is past help".to_owned());
            }
            if last_heard.elapsed() > SILENCE {
                break Some(format!("it hangs: not a word for {} s", SILENCE.as_secs()));
            }
            if start.elapsed() > LONGEST {
                break Some(format!("not at its end after {} s", LONGEST.as_secs()));
            }
        };
        let trouble = match trouble {
            Some(trouble) => Some(trouble),
            None => {
                let status = child.0.wait()?;
                // A panic restarts the machine, and that ends qemu in order.
                if past_help.is_some() || kernel.is_past_help() {
                    Some("the kernel is past help".into())
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
            trouble: trouble.map(|what| format!("{what}\n{}", self.logs.last_lines())),
        })
    }
}

/// qemu, ended on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// The lines of qemu's standard output (the second serial line) and of its errors.
fn lines_of(child: &mut Child) -> Result<std::sync::mpsc::Receiver<String>> {
    let (sender, lines) = channel();
    let output = child.stdout.take().context("qemu has no output")?;
    if let Some(errors) = child.stderr.take() {
        let sender = sender.clone();
        let _reader = thread::spawn(move || pass_on(errors, &sender));
    }
    let _reader = thread::spawn(move || pass_on(output, &sender));
    Ok(lines)
}

fn pass_on(from: impl std::io::Read, to: &std::sync::mpsc::Sender<String>) {
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if to.send(line).is_err() {
            return;
        }
    }
}

/// The kernel's log, looked at when it has grown.
struct Kernel<'a> {
    path: &'a Path,
    length: u64,
}

impl<'a> Kernel<'a> {
    fn new(path: &'a Path) -> Self {
        Self { path, length: 0 }
    }

    fn is_past_help(&mut self) -> bool {
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
    /// For a guest of that name.
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
