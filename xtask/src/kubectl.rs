//! Finds kubectl, which renders the manifests, or downloads it from Debian.
//!
//! The kubectl of Debian's stable releases may be too old for our overlays, so it comes from sid.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt;
use crate::shell::{find_all, output, root};
use crate::versions::KUBECTL;

/// Where a downloaded kubectl is kept, relative to the root.
const DIRECTORY: &str = "target/kubectl";

/// A kubectl that can render the overlays: the one in `PATH`, else one downloaded earlier, else a new download.
///
/// # Errors
/// There is none, and the download failed: why.
pub fn find_or_fetch() -> Result<PathBuf> {
    let directory = root().join(DIRECTORY);
    let fetched = directory.join("usr/bin/kubectl");
    let candidates = find_all("kubectl").into_iter().chain([fetched.clone()]);
    for kubectl in candidates {
        if let Some(minor) = minor_version(&kubectl)
            && minor >= KUBECTL
        {
            println!("setup: have kubectl 1.{minor} ({})", kubectl.display());
            return Ok(kubectl);
        }
    }
    apt::unpack("kubectl", "sid", &directory).with_context(|| {
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
