//! `cargo xtask test vm`: the namespace suite on other kernels, each in a virtual machine of its own.
//!
//! A guest has no distribution: Debian's cloud kernel, and an initramfs with our binaries, the commands that
//! they call, and the modules that the suite needs. It needs neither root nor kvm here.

mod apt;
mod console;
mod contents;
mod image;
mod initramfs;
mod kernels;
mod modules;
mod qemu;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::release::Binaries;
use crate::shell::target_dir;
use image::Kernel;
use qemu::{Accelerator, Boot, Logs, Machine};

/// Which kernels, and which cases.
#[derive(Debug, Default)]
pub struct Options {
    /// Names of Debian's kernels; the usual ones if nothing is given.
    pub names: Vec<String>,
    /// A package.
    pub package: Option<PathBuf>,
    /// An image with the directory of its modules.
    pub image: Option<(PathBuf, PathBuf)>,
    /// Where our binaries are; built if nothing is given.
    pub binaries: Option<PathBuf>,
    /// Cases, as `testbed suite` takes them.
    pub filter: Vec<OsString>,
}

/// What became of one kernel.
#[derive(Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// How its boot ended, or why there was none.
    pub boot: Result<Boot>,
}

fn cache() -> PathBuf {
    target_dir().join("vm")
}

/// Runs the suite on each kernel.
///
/// # Errors
/// When nothing can be run at all.
pub fn run(options: &Options) -> Result<Vec<Guest>> {
    let cache = cache();
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let binaries = match &options.binaries {
        Some(directory) => Binaries::of(directory)?,
        None => Binaries::build()?,
    };
    let base = contents::base(binaries.daemon(), binaries.testbed_program())?;
    let mut guests = Vec::new();
    for name in &options.names {
        let package = kernels::package(name, &cache)?;
        let kernel = Kernel::of_package(name, &package, &cache)?;
        let boot = one(&kernel, &base, options);
        guests.push(Guest {
            name: name.clone(),
            boot,
        });
    }
    if guests.is_empty() {
        bail!("no kernel to run");
    }
    Ok(guests)
}

fn one(kernel: &Kernel, base: &initramfs::Initramfs, options: &Options) -> Result<Boot> {
    let mut guest = base.clone();
    let mut order = String::new();
    for module in modules::needed(&kernel.modules)? {
        let path = format!("/modules/{}", module.name);
        order.push_str(&format!("{path}\n"));
        guest.bytes(path, module.bytes);
    }
    guest.bytes("/modules/order", order);
    let mut arguments = String::from("--daemon\n/bin/probe-handler\n");
    for filter in &options.filter {
        arguments.push_str(&format!("{}\n", filter.to_string_lossy()));
    }
    guest.bytes("/suite-arguments", arguments);
    let cache = cache();
    let archive = cache.join(format!("{}.cpio", kernel.name));
    guest.write(&archive)?;
    let machine = Machine {
        image: &kernel.image,
        initramfs: &archive,
        accelerator: Accelerator::find(&kernel.image),
        processors: 2,
        logs: Logs::new(&cache, &kernel.name),
    };
    println!(
        "vm: booting {} ({})",
        kernel.name,
        machine.accelerator.name()
    );
    machine.boot(|line| println!("{}: {line}", kernel.name))
}
