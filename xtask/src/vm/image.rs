//! A kernel for qemu: the image, and the directory of its modules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{exec, output};

/// Name prefixes of a kernel's additional packages.
pub const COMPANIONS: [&str; 2] = ["linux-binary-", "linux-modules-"];

/// A kernel to boot.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name in tables.
    pub name: String,
    /// Path of the compressed kernel.
    pub image: PathBuf,
    /// The directory that holds `kernel/` and `modules.builtin`.
    pub modules: PathBuf,
}

impl Kernel {
    /// Unpacks a package, unless an earlier run has done so.
    ///
    /// # Errors
    /// When it cannot be unpacked, or contains no kernel.
    pub fn of_package(name: &str, package: &Path, cache: &Path) -> Result<Self> {
        let stem = package.file_stem().context("a package without a name")?;
        let directory = cache.join("unpacked").join(stem);
        if !directory.is_dir() {
            // Renamed when complete, because a run may be interrupted.
            let partial = cache.join("unpacked").join("partial");
            if partial.exists() {
                fs::remove_dir_all(&partial)?;
            }
            fs::create_dir_all(&partial)?;
            for part in parts(package) {
                exec(
                    Command::new("dpkg-deb")
                        .arg("--extract")
                        .arg(part)
                        .arg(&partial),
                )?;
            }
            fs::rename(&partial, &directory)?;
        }
        let image = ["boot", "usr/lib/modules", "lib/modules"]
            .iter()
            .find_map(|place| kernel_in(&directory.join(place)));
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .find_map(|place| only(&directory.join(place), ""));
        let (Some(image), Some(modules)) = (image, modules) else {
            fs::remove_dir_all(&directory)?;
            bail!(
                "{} holds no kernel with its modules, nor do linux-binary and linux-modules of that version \
                 beside it",
                package.display()
            );
        };
        let name = name.to_owned();
        Ok(Self {
            name,
            image,
            modules,
        })
    }

    /// A kernel from a package that the user provides.
    ///
    /// # Errors
    /// Those of [`Kernel::of_package`].
    pub fn of_file(package: &Path, cache: &Path) -> Result<Self> {
        if !package.is_file() {
            bail!("--kernel-deb {}: no such file", package.display());
        }
        let stem = package.file_stem().context("a package without a name")?;
        // An earlier package may have had the same name.
        let before = cache.join("unpacked").join(stem);
        if before.exists() {
            fs::remove_dir_all(&before)?;
        }
        Self::of_package(&stem.to_string_lossy(), package, cache)
    }

    /// A kernel from an image and a directory of modules.
    ///
    /// # Errors
    /// When one of them does not exist.
    pub fn by_path(image: &Path, modules: &Path) -> Result<Self> {
        if !image.is_file() {
            bail!("--bzimage {}: no such file", image.display());
        }
        if !modules.join("kernel").is_dir() {
            bail!(
                "--modules {}: contains no directory `kernel`",
                modules.display()
            );
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

/// Whether a package is truncated or damaged.
pub fn is_damaged(package: &Path) -> bool {
    output(Command::new("dpkg-deb").arg("--contents").arg(package)).is_none()
}

/// A kernel's packages: one, or since 7.2 an empty one and, in the same directory, `linux-binary` and
/// `linux-modules` of the same version.
fn parts(package: &Path) -> Vec<PathBuf> {
    let mut parts = vec![package.to_owned()];
    let name = package.file_name().map(|name| name.to_string_lossy());
    if let Some(rest) = name
        .as_deref()
        .and_then(|name| name.strip_prefix("linux-image-"))
    {
        let beside =
            COMPANIONS.map(|companion| package.with_file_name(format!("{companion}{rest}")));
        parts.extend(beside.into_iter().filter(|path| path.is_file()));
    }
    parts
}

/// The image in /boot, or in the directory of its modules.
fn kernel_in(directory: &Path) -> Option<PathBuf> {
    only(directory, "vmlinuz-").or_else(|| {
        let image = only(directory, "")?.join("vmlinuz");
        image.is_file().then_some(image)
    })
}

/// The first entry of a directory whose name begins with `prefix`.
fn only(directory: &Path, prefix: &str) -> Option<PathBuf> {
    fs::read_dir(directory)
        .ok()?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_packages_of_a_kernel_are_found() {
        let directory = tempfile::tempdir().expect("directory");
        let name = |kind: &str| {
            directory.path().join(format!(
                "linux-{kind}-7.2.13-cloud-amd64_7.2.13-1_amd64.deb"
            ))
        };
        for kind in ["image", "binary", "modules", "headers"] {
            fs::write(name(kind), "").expect("file");
        }
        assert_eq!(
            parts(&name("image")),
            [name("image"), name("binary"), name("modules")]
        );
        let alone = directory
            .path()
            .join("linux-image-6.1.0-53-cloud-amd64_6.1.187-1_amd64.deb");
        assert_eq!(parts(&alone), std::slice::from_ref(&alone));
    }

    #[test]
    fn a_truncated_package_is_damaged() {
        let directory = tempfile::tempdir().expect("directory");
        let control = directory.path().join("package/DEBIAN");
        fs::create_dir_all(&control).expect("directory");
        let text = "Package: kernel\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: none\n";
        fs::write(control.join("control"), text).expect("file");
        let package = directory.path().join("kernel.deb");
        let mut build = Command::new("dpkg-deb");
        build.args(["--root-owner-group", "--build"]);
        build.arg(directory.path().join("package")).arg(&package);
        assert!(output(&mut build).is_some(), "dpkg-deb makes a package");
        assert!(!is_damaged(&package));
        let whole = fs::read(&package).expect("the package");
        fs::write(&package, &whole[..whole.len() - 20]).expect("file");
        assert!(is_damaged(&package));
    }

    #[test]
    fn the_error_names_the_option_of_a_missing_path() {
        let directory = tempfile::tempdir().expect("directory");
        let none = directory.path().join("none");
        let error = Kernel::of_file(&none, directory.path()).expect_err("no package");
        assert!(error.to_string().contains("--kernel-deb"), "{error}");
        let error = Kernel::by_path(&none, directory.path()).expect_err("no image");
        assert!(error.to_string().contains("--bzimage"), "{error}");
        fs::write(&none, "").expect("file");
        let error = Kernel::by_path(&none, directory.path()).expect_err("no modules");
        assert!(error.to_string().contains("--modules"), "{error}");
    }
}
