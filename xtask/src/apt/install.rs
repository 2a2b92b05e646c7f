//! Installs Debian packages.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::suite::{KEYRING, mirror};
use crate::progress;
use crate::shell::{exec, is_root, target_dir};

/// Installs without questions, without recommended packages, and without removing any package.
const INSTALL: [&str; 4] = ["install", "--yes", "--no-install-recommends", "--no-remove"];

/// Installs Debian packages and removes none. Updates the package lists only if the installation fails
/// without that.
///
/// # Errors
/// When this needs root and we are not root, or when apt-get fails repeatedly.
pub fn install(packages: &[String]) -> Result<()> {
    const ATTEMPTS: u32 = 3;
    let list = packages.join(" ");
    let mut install = apt_get();
    install.args(INSTALL).args(packages);
    if !is_root() {
        bail!(
            "these Debian packages are missing and only root can install them:\n  apt-get update && apt-get install --no-install-recommends {list}"
        );
    }
    println!("setup: installing {list}");
    // With old lists it may fail; its messages would only confuse.
    if progress::attempt(&mut install, "setup by apt").is_ok() {
        return Ok(());
    }
    for attempt in 1..=ATTEMPTS {
        println!("setup: updating apt's package lists");
        let result = progress::run(apt_get().arg("update"), "update by apt")
            .and_then(|()| progress::run(&mut install, "setup by apt"));
        match result {
            Ok(()) => return Ok(()),
            Err(error) if attempt < ATTEMPTS => {
                println!("setup: {error:#}; attempt {} of {ATTEMPTS}", attempt + 1);
            }
            Err(error) => {
                return Err(error.context(format!(
                    "cannot install {list}; if this Debian has none of that version, \
                     `cargo xtask setup --with rustup` is the other way for the compiler"
                )));
            }
        }
    }
    Ok(())
}

/// apt-get for scripts: no questions, waits for network and lock.
fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args([
        "--quiet",
        "--option=Acquire::Retries=3",
        "--option=DPkg::Lock::Timeout=300",
        "--option=Dpkg::Use-Pty=0",
    ]);
    command
}

/// Installs Debian packages from this release's backports, if the machine's suites have no version that matches
/// the installed packages. Removes no package, and does not change the machine's apt sources.
///
/// # Errors
/// Those of [`install`]; also when this is not a Debian release with backports.
pub fn install_from_backports(packages: &[String]) -> Result<()> {
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let suite = format!(
        "{}-backports",
        codename(&release).context("/etc/os-release has no codename, so there are no backports")?
    );
    println!("setup: installing {} from {suite}", packages.join(" "));
    let ours = target_dir().join("apt").join(&suite);
    let sources = ours.join("sources");
    fs::create_dir_all(ours.join("lists/partial"))?;
    // The dependencies come from the machine's own suites.
    if sources.exists() {
        fs::remove_dir_all(&sources)?;
    }
    fs::create_dir_all(&sources)?;
    copy_sources(Path::new("/etc/apt"), &sources)?;
    fs::write(
        sources.join("backports.sources"),
        format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n",
            mirror(false)?
        ),
    )?;
    let apt_get = || {
        let mut command = apt_get();
        command.args([
            format!("--option=Dir::State::Lists={}/lists", ours.display()),
            format!("--option=Dir::Etc::SourceParts={}", sources.display()),
            "--option=Dir::Etc::SourceList=/dev/null".into(),
        ]);
        command
    };
    exec(apt_get().arg("update"))?;
    exec(
        apt_get()
            .args(INSTALL)
            .args(["--target-release", &suite])
            .args(packages),
    )
}

/// Copies the machine's apt sources from `etc` into one directory.
fn copy_sources(etc: &Path, into: &Path) -> Result<()> {
    let list = etc.join("sources.list");
    if list.exists() {
        fs::copy(list, into.join("machine.list"))?;
    }
    for entry in fs::read_dir(etc.join("sources.list.d"))
        .into_iter()
        .flatten()
    {
        let entry = entry?;
        fs::copy(entry.path(), into.join(entry.file_name()))?;
    }
    Ok(())
}

/// The codename in an os-release file, for example bookworm.
fn codename(release: &str) -> Option<&str> {
    release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"'))
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_a_codename() {
        let bookworm = "ID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(codename(bookworm), Some("bookworm"));
        assert_eq!(codename("VERSION_CODENAME=\"noble\"\n"), Some("noble"));
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=\n"), None);
        assert_eq!(codename("ID=alpine\n"), None);
    }
}
