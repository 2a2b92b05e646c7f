//! Finds promtool, which checks metrics and alerts, or downloads it from Debian: it is in the package `prometheus`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt;
use crate::shell::{find, output, root};

/// Where a downloaded promtool is kept, relative to the root.
const DIRECTORY: &str = "target/promtool";

/// The promtool in `PATH`, else one downloaded earlier, else a new download.
///
/// # Errors
/// There is none, and the download failed: why.
pub fn find_or_fetch() -> Result<PathBuf> {
    let directory = root().join(DIRECTORY);
    let fetched = directory.join("usr/bin/promtool");
    let have = find("promtool").into_iter().chain([fetched.clone()]);
    if let Some(promtool) = have.into_iter().find(|path| runs(path)) {
        println!("setup: have promtool ({})", promtool.display());
        return Ok(promtool);
    }
    // Of this machine's own release, because the program uses the C library.
    let suite = codename().context("/etc/os-release names no release of Debian")?;
    apt::unpack("prometheus", &suite, &directory)
        .context("PATH has no promtool, and the download failed")?;
    ensure!(runs(&fetched), "the downloaded promtool does not run");
    println!("setup: downloaded promtool ({})", fetched.display());
    Ok(fetched)
}

fn runs(promtool: &Path) -> bool {
    output(Command::new(promtool).arg("--version")).is_some()
}

fn codename() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(name.trim_matches('"').to_owned())
}
