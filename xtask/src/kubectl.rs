//! Finds kubectl, which renders the manifests, or downloads it from Debian.
//!
//! The kubectl of Debian's stable releases may be too old for our overlays, so it comes from sid. A
//! separate apt configuration keeps the machine's package lists and installed packages unchanged. The
//! archive's address comes from the machine's own apt sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::shell::{exec, find, find_all, output, root};
use crate::versions::KUBECTL;

/// Where a downloaded kubectl is kept, relative to the root.
const DIRECTORY: &str = "target/kubectl";

/// A kubectl that can render the overlays: the one in `PATH`, else one downloaded earlier, else a new download.
///
/// # Errors
/// There is none, and the download failed: why.
pub fn find_or_fetch() -> Result<PathBuf> {
    let fetched = root().join(DIRECTORY).join("usr/bin/kubectl");
    let candidates = find_all("kubectl").into_iter().chain([fetched.clone()]);
    for kubectl in candidates {
        if let Some(minor) = minor_version(&kubectl)
            && minor >= KUBECTL
        {
            println!("setup: have kubectl 1.{minor} ({})", kubectl.display());
            return Ok(kubectl);
        }
    }
    fetch().with_context(|| {
        format!("PATH has no kubectl 1.{KUBECTL} or newer, and the download failed")
    })?;
    let minor = minor_version(&fetched).context("the downloaded kubectl does not run")?;
    ensure!(
        minor >= KUBECTL,
        "the downloaded kubectl is version 1.{minor}, older than 1.{KUBECTL}"
    );
    println!(
        "setup: downloaded kubectl 1.{minor} ({})",
        fetched.display()
    );
    Ok(fetched)
}

/// The minor version: 32 for 1.32.4.
fn minor_version(kubectl: &Path) -> Option<u32> {
    let text = output(Command::new(kubectl).args(["version", "--client", "-o", "json"]))?;
    let version: serde_json::Value = serde_json::from_str(&text).ok()?;
    let version = version["clientVersion"]["gitVersion"].as_str()?;
    version.strip_prefix("v1.")?.split('.').next()?.parse().ok()
}

/// Downloads Debian's package and unpacks it, without installing anything.
fn fetch() -> Result<()> {
    if find("apt-get").is_none() || find("dpkg").is_none() {
        bail!("this is not Debian: install kubectl manually");
    }
    let archive = archive().context("apt's sources contain no Debian archive")?;
    println!("setup: downloading kubectl from Debian sid");
    let directory = root().join(DIRECTORY);
    let apt = directory.join("apt");
    for part in ["lists/partial", "cache/archives/partial"] {
        let part = apt.join(part);
        fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
    }
    let sources = apt.join("sources.list");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::write(
        &sources,
        format!("deb [signed-by={keyring}] {archive} sid main\n"),
    )
    .with_context(|| format!("cannot write {}", sources.display()))?;
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command
            .current_dir(&apt)
            .args(["--quiet", "--option=Acquire::Retries=3"])
            .args([
                "--option=Acquire::Languages=none",
                "--option=APT::Sandbox::User=root",
            ])
            .arg(format!(
                "--option=Dir::State::Lists={}",
                apt.join("lists").display()
            ))
            .arg(format!(
                "--option=Dir::Cache={}",
                apt.join("cache").display()
            ))
            .arg(format!(
                "--option=Dir::Etc::SourceList={}",
                sources.display()
            ))
            .arg("--option=Dir::Etc::SourceParts=-")
            // Ignore the packages that are installed on this machine.
            .arg("--option=Dir::State::status=/dev/null")
            .arg("--option=Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false");
        command
    };
    exec(apt_get().arg("update"))?;
    exec(apt_get().args(["download", "kubectl"]))?;
    let package = fs::read_dir(&apt)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded no package")?;
    exec(
        Command::new("dpkg")
            .arg("--extract")
            .args([&package, &directory]),
    )?;
    // The lists and the package are no longer needed.
    fs::remove_dir_all(&apt).with_context(|| format!("cannot remove {}", apt.display()))
}

/// The address of Debian's archive in this machine's apt sources.
fn archive() -> Option<String> {
    let targets = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    debian_archive(&targets)
}

/// The main archive has the label Debian; security and backports have other labels.
fn debian_archive(targets: &str) -> Option<String> {
    targets
        .lines()
        .find_map(|line| line.strip_prefix("Debian "))
        .map(|address| address.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_found_among_the_others() {
        let targets = "Debian-Security mirror:/security/\nThird Party mirror:/other/\nDebian mirror:/debian/\n";
        assert_eq!(debian_archive(targets).as_deref(), Some("mirror:/debian"));
        assert_eq!(debian_archive("Ubuntu mirror:/ubuntu/\n"), None);
    }
}
