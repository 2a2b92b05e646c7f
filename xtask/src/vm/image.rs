//! A kernel as qemu wants it: the image, and the directory of its modules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::exec;

/// A kernel to boot.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What it is called in tables.
    pub name: String,
    /// The compressed kernel.
    pub image: PathBuf,
    /// The directory that holds `kernel/` and `modules.builtin`.
    pub modules: PathBuf,
}

impl Kernel {
    /// Unpacks a package, unless an earlier run did.
    ///
    /// # Errors
    /// When it cannot be unpacked, or holds no kernel.
    pub fn of_package(name: &str, package: &Path, cache: &Path) -> Result<Self> {
        let stem = package.file_stem().context("a package without a name")?;
        let directory = cache.join("unpacked").join(stem);
        if !directory.is_dir() {
            // Renamed when it is whole, for a run may be interrupted.
            let partial = cache.join("unpacked").join("partial");
            if partial.exists() {
                fs::remove_dir_all(&partial)?;
            }
            fs::create_dir_all(&partial)?;
            exec(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(package)
                    .arg(&partial),
            )?;
            fs::rename(&partial, &directory)?;
        }
        let image = only(&directory.join("boot"), "vmlinuz-");
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .find_map(|place| only(&directory.join(place), ""));
        let (Some(image), Some(modules)) = (image, modules) else {
            bail!("{} holds no kernel with its modules", package.display());
        };
        let name = name.to_owned();
        Ok(Self {
            name,
            image,
            modules,
        })
    }

    /// From a package that somebody names.
    ///
    /// # Errors
    /// As [`Kernel::of_package`].
    pub fn of_file(package: &Path, cache: &Path) -> Result<Self> {
        if !package.is_file() {
            bail!("--kernel-deb {}: no such file", package.display());
        }
        let stem = package.file_stem().context("a package without a name")?;
        Self::of_package(&stem.to_string_lossy(), package, cache)
    }

    /// From an image and a directory of modules.
    ///
    /// # Errors
    /// When one of them is not there.
    pub fn by_path(image: &Path, modules: &Path) -> Result<Self> {
        if !image.is_file() {
            bail!("--bzimage {}: no such file", image.display());
        }
        if !modules.join("kernel").is_dir() {
            bail!("--modules {}: holds no `kernel/`", modules.display());
        }
        let name = modules
            .file_name()
            .context("--modules: a directory without a name")?;
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            image: image.to_owned(),
            modules: modules.to_owned(),
        })
    }
}

/// The first entry of a directory whose name begins with `prefix`.
fn only(directory: &Path, prefix: &str) -> Option<PathBuf> {
    fs::read_dir(directory)
        .ok()?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
}
