//! `cargo xtask test vm`: runs the namespace suite on other kernels, each in its own virtual machine.
//!
//! A guest has no distribution. It consists of Debian's cloud kernel and an initramfs with our programs, the
//! commands that they run, and the modules that the suite needs. This requires neither root nor kvm.

mod capacity;
mod console;
mod console_filter;
mod contents;
mod image;
mod initramfs;
mod kernels;
mod modules;
mod qemu;
mod table;
mod watch;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::counts::Counts;
use crate::release::Binaries;
use crate::setup;
use crate::shell::target_dir;
use console_filter::ConsoleFilter;
use image::Kernel;
use initramfs::Initramfs;
use qemu::{Accelerator, Machine};
use watch::{Boot, Logs};

/// The processors of each guest. The suite runs one case after the other and often waits: a second one would mostly be
/// idle.
const PROCESSORS: u32 = 1;

/// The kernel on which the suite's daemons run without the kernel path, so that each case also verifies the handler's path.
const WITHOUT_KERNEL_PATH: &str = "6.1";

/// Which kernels, and which cases.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Debian cloud kernels to run the suite on, by version, for example 6.1 [default: 5.10 6.1 6.12]
    #[arg(value_name = "KERNEL")]
    names: Vec<String>,
    /// Run on the kernel in this Debian package
    #[arg(long, value_name = "FILE")]
    kernel_deb: Vec<PathBuf>,
    /// Run on this kernel image; requires --modules
    #[arg(long, value_name = "FILE", requires = "modules")]
    bzimage: Option<PathBuf>,
    /// Directory of the image's modules, which contains `kernel/`, for example /lib/modules/6.1.0
    #[arg(long, value_name = "DIR", requires = "bzimage")]
    modules: Option<PathBuf>,
    /// Use probe-handler and testbed from DIR instead of building them
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
}

impl Options {
    /// Whether an option is set that applies only to virtual machines.
    pub fn is_given(&self) -> bool {
        !self.names.is_empty()
            || !self.kernel_deb.is_empty()
            || self.bzimage.is_some()
            || self.binaries.is_some()
    }

    /// The number of kernels to run.
    fn count(&self) -> usize {
        if self.any_kernel() {
            self.names.len() + self.kernel_deb.len() + usize::from(self.bzimage.is_some())
        } else {
            kernels::DEFAULT.len()
        }
    }

    fn any_kernel(&self) -> bool {
        !self.names.is_empty() || !self.kernel_deb.is_empty() || self.bzimage.is_some()
    }
}

/// The results of all kernels.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The sum over all kernels; a guest without counts counts as one failure.
    pub counts: Counts,
    /// The table, followed by a line for each failure and each skip.
    pub notes: Vec<String>,
}

/// One kernel, and how its run ended or why it did not start.
struct Guest {
    name: String,
    boot: Result<Boot>,
}

/// Runs the suite on every kernel, even if it fails on another.
///
/// # Errors
/// When nothing can run: an unknown kernel, no qemu, not enough memory.
pub fn run(options: &Options, filter: &[OsString]) -> Result<Outcome> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the virtual machines need an x86_64 host, because they run programs built for it");
    }
    setup::virtual_machines()?;
    let cache = target_dir().join("vm");
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let _only_one = only_one(&cache)?;
    let at_once = capacity::guests_at_once(&cache, options.count())?;
    let kernels = kernels(options, &cache)?;
    let binaries = match &options.binaries {
        Some(directory) => Binaries::of(directory)?,
        None => Binaries::build_release()?,
    };
    let base = contents::base(binaries.daemon(), binaries.testbed_program())?;
    let first = kernels.iter().flat_map(|(_, kernel)| kernel).next();
    let accelerator = match first {
        Some(kernel) => Accelerator::find(&kernel.image),
        None => bail!("{}", all_faults(&kernels)),
    };
    let config = GuestConfig {
        base,
        cache,
        accelerator,
        at_once,
        filter: filter
            .iter()
            .map(|filter| filter.to_string_lossy().into_owned())
            .collect(),
    };
    Ok(table::outcome(&config.boot_all(kernels)))
}

/// Locks the cache, because two runs would overwrite each other's logs.
fn only_one(cache: &Path) -> Result<Flock<File>> {
    let file = File::create(cache.join("lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow!(
            "{} is locked ({error}): another `cargo xtask test vm` is running",
            cache.display()
        )
    })
}

type Named = (String, Result<Kernel>);

/// The selected kernels. One that cannot be downloaded does not prevent the others from running; one that
/// does not exist is a mistake of the user and ends the command.
fn kernels(options: &Options, cache: &Path) -> Result<Vec<Named>> {
    let mut found: Vec<Named> = Vec::new();
    let usual: Vec<String> = kernels::DEFAULT
        .iter()
        .map(|name| (*name).to_owned())
        .collect();
    let names = if options.any_kernel() {
        &options.names
    } else {
        &usual
    };
    require_distinct(names)?;
    for name in names {
        let kernel = match kernels::package(name, cache) {
            Err(kernels::Error::Unknown(what)) => bail!(what),
            Err(kernels::Error::Missing(error)) => Err(error),
            Ok(package) => Kernel::of_package(name, &package, cache).map_err(|error| {
                if crate::test::interrupted() || !image::is_damaged(&package) {
                    return error;
                }
                // An earlier run may have been interrupted; the next one downloads the package again.
                let _removed = fs::remove_file(&package);
                error.context(format!(
                    "{} was damaged and has been removed: run the command again to download it",
                    package.display()
                ))
            }),
        };
        found.push((name.clone(), kernel));
    }
    for package in &options.kernel_deb {
        let kernel = Kernel::of_file(package, cache)?;
        found.push((kernel.name.clone(), Ok(kernel)));
    }
    if let (Some(image), Some(modules)) = (&options.bzimage, &options.modules) {
        let kernel = Kernel::by_path(image, modules)?;
        found.push((kernel.name.clone(), Ok(kernel)));
    }
    require_distinct(found.iter().map(|(name, _)| name))?;
    Ok(found)
}

/// Refuses duplicate names, because logs and archives are named after the kernels.
fn require_distinct<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<()> {
    let mut seen = BTreeSet::new();
    match names.into_iter().find(|name| !seen.insert(*name)) {
        Some(twice) => bail!("kernel {twice} is given twice"),
        None => Ok(()),
    }
}

fn all_faults(kernels: &[Named]) -> String {
    let faults = kernels.iter().filter_map(|(name, kernel)| {
        let error = kernel.as_ref().err()?;
        Some(format!("{name}: {error:#}"))
    });
    faults.collect::<Vec<_>>().join("\n")
}

/// Settings that all guests share.
struct GuestConfig {
    base: Initramfs,
    cache: PathBuf,
    accelerator: Accelerator,
    at_once: usize,
    filter: Vec<String>,
}

impl GuestConfig {
    /// Boots all kernels, several at a time, and returns their results in the order of the kernels.
    fn boot_all(&self, kernels: Vec<Named>) -> Vec<Guest> {
        let waiting = Mutex::new(kernels.into_iter().enumerate());
        // A closure, so that the lock is not held while the guest runs.
        let next = || lock(&waiting).next();
        let done = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..self.at_once {
                let _worker = scope.spawn(|| {
                    while let Some((index, (name, kernel))) = next() {
                        let boot = match crate::test::interrupted() {
                            true => Err(anyhow!("interrupted")),
                            false => kernel.and_then(|kernel| self.boot(&kernel)),
                        };
                        lock(&done).push((index, Guest { name, boot }));
                    }
                });
            }
        });
        let mut done = done
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, guest)| guest).collect()
    }

    fn boot(&self, kernel: &Kernel) -> Result<Boot> {
        let name = &kernel.name;
        let archive = self.cache.join(format!("{name}.cpio"));
        self.initramfs(kernel)?.write(&archive)?;
        let machine = Machine {
            image: &kernel.image,
            initramfs: &archive,
            accelerator: self.accelerator,
            processors: PROCESSORS,
            kernel_path: name != WITHOUT_KERNEL_PATH,
            logs: Logs::new(&self.cache, name),
        };
        println!(
            "vm {name}: booting with {}; log: {}",
            machine.accelerator.name(),
            machine.logs.guest.display()
        );
        let mut filter = ConsoleFilter::default();
        let boot = machine.boot(|line| {
            if filter.shows(line) {
                println!("vm {name}: {line}");
            }
        })?;
        println!("vm {name}: ended after {:.0} s", boot.took.as_secs_f64());
        let _kept = fs::remove_file(&archive);
        Ok(boot)
    }

    fn initramfs(&self, kernel: &Kernel) -> Result<Initramfs> {
        let mut guest = self.base.clone();
        let mut order = String::new();
        for module in modules::needed(&kernel.modules)? {
            let path = format!("/modules/{}", module.name);
            order.push_str(&format!("{path}\n"));
            guest.bytes(path, module.bytes);
        }
        guest.bytes("/modules/order", order);
        let mut arguments = String::from("--daemon\n/bin/probe-handler\n");
        for argument in crate::test::REPEAT_FAILED {
            arguments.push_str(&format!("{argument}\n"));
        }
        for filter in &self.filter {
            arguments.push_str(&format!("{filter}\n"));
        }
        guest.bytes("/suite-arguments", arguments);
        Ok(guest)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
