//! Checks a folder of a release: nothing is missing, added or changed, and the content of each file matches
//! its name.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use flate2::read::GzDecoder;
use serde_json::Value;

use super::SUMS;
use super::plugin::{self, KREW};
use crate::image::{Machine, require_program, require_static, sha256};

/// Returns a line for each file.
///
/// # Errors
/// The first fault, with the file's name.
pub fn folder(folder: &Path) -> Result<Vec<String>> {
    let sums = fs::read_to_string(folder.join(SUMS))
        .with_context(|| format!("{} is no folder of a release: no {SUMS}", folder.display()))?;
    let mut listed = BTreeSet::from([SUMS.to_owned()]);
    let mut rows = Vec::new();
    for line in sums.lines() {
        let (digest, name) = line
            .split_once("  ")
            .with_context(|| format!("{SUMS} has an invalid line: {line:?}"))?;
        ensure!(!name.contains('/'), "{SUMS} names a file elsewhere: {name}");
        let content = fs::read(folder.join(name))
            .with_context(|| format!("{name} is in {SUMS} and can't be read"))?;
        let found = sha256(&content);
        ensure!(
            found == digest,
            "{name} was changed: its digest is {found}, not {digest}"
        );
        let what = match name {
            KREW => {
                let digest = |name: &str| digest_in(&sums, name);
                plugin::verify_krew(&content, digest).context(KREW)?;
                "manifest for krew"
            }
            name => check(name, &content).with_context(|| name.to_owned())?,
        };
        rows.push(format!(
            "{name}: {what}, {} bytes, sha256:{digest}",
            content.len()
        ));
        let _new = listed.insert(name.to_owned());
    }
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ensure!(listed.contains(&name), "{name} is not in {SUMS}");
    }
    ensure!(!rows.is_empty(), "{SUMS} is empty");
    Ok(rows)
}

/// The digest of a file in the list.
fn digest_in(sums: &str, name: &str) -> Option<String> {
    let mut lines = sums.lines().filter_map(|line| line.split_once("  "));
    let (digest, _) = lines.find(|(_, listed)| *listed == name)?;
    Some(digest.to_owned())
}

/// Checks that the content of a file matches its name, and describes it.
fn check(name: &str, content: &[u8]) -> Result<&'static str> {
    if name.ends_with(".image.tar") {
        image(content)?;
        return Ok("image");
    }
    if name.ends_with(".tar.gz") {
        archive(name, content)?;
        return Ok("plugin");
    }
    if name.ends_with(".tgz") {
        chart(name, content)?;
        return Ok("chart");
    }
    if name.ends_with(".cdx.json") {
        let list: Value = serde_json::from_slice(content).context("not JSON")?;
        let components = list["components"].as_array().map_or(0, Vec::len);
        ensure!(
            list["bomFormat"] == "CycloneDX" && components > 0,
            "no list of components"
        );
        return Ok("list of components");
    }
    if let Some((_, machine)) = name.split_once("-linux-") {
        let Ok(machine) = Machine::from_str(machine, false) else {
            bail!("unknown architecture {machine}");
        };
        require_static(content, machine)?;
        return Ok("static program");
    }
    Ok("text")
}

/// Each blob of an image has its digest as its name.
fn image(content: &[u8]) -> Result<()> {
    let mut tar = tar::Archive::new(content);
    let mut blobs = 0;
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.display().to_string();
        if let Some(digest) = path.strip_prefix("blobs/sha256/")
            && entry.header().entry_type().is_file()
        {
            let mut blob = Vec::new();
            let _size = entry.read_to_end(&mut blob)?;
            ensure!(sha256(&blob) == digest, "blob {digest} has another digest");
            blobs += 1;
        }
    }
    ensure!(
        blobs >= 3,
        "an image has a manifest, a configuration and a layer"
    );
    Ok(())
}

/// The archive of the plugin contains its licence, and a program for the architecture of its name.
fn archive(name: &str, content: &[u8]) -> Result<()> {
    let mut machines = Machine::value_variants().iter().copied();
    let machine = machines.find(|machine| plugin::name(*machine) == name);
    let machine = machine.context("not the name of an archive of the plugin")?;
    let mut tar = tar::Archive::new(GzDecoder::new(content));
    let (mut has_program, mut has_licence) = (false, false);
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.display().to_string();
        if path == plugin::PACKAGE {
            let mut program = Vec::new();
            let _size = entry.read_to_end(&mut program)?;
            require_program(&program, machine)?;
            has_program = true;
        }
        has_licence |= path == "LICENSE";
    }
    ensure!(has_program && has_licence, "no program, or no LICENSE");
    Ok(())
}

/// The chart's version is the one in the name of its archive.
fn chart(name: &str, content: &[u8]) -> Result<()> {
    let mut tar = tar::Archive::new(GzDecoder::new(content));
    for entry in tar.entries()? {
        let mut entry = entry?;
        if entry.path()?.ends_with("Chart.yaml") {
            let mut text = String::new();
            let _size = entry.read_to_string(&mut text)?;
            let version = text.lines().find_map(|line| line.strip_prefix("version: "));
            let version = version.context("Chart.yaml has no version")?;
            ensure!(
                name == format!("probe-handler-{version}.tgz"),
                "the chart's version is {version}"
            );
            return Ok(());
        }
    }
    bail!("the archive contains no Chart.yaml")
}

#[cfg(test)]
mod tests {
    use super::super::{chart, release, write};
    use super::*;

    /// A folder with a chart and a text.
    fn sample() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("directory");
        let archive = chart::archive(1).expect("chart");
        let files = vec![
            (format!("{}.tgz", release()), archive),
            ("LICENSE".to_owned(), b"text".to_vec()),
        ];
        write(directory.path(), files).expect("written");
        directory
    }

    fn fault(directory: &tempfile::TempDir) -> String {
        format!("{:#}", folder(directory.path()).expect_err("a fault"))
    }

    #[test]
    fn an_unchanged_folder_passes() {
        let rows = folder(sample().path()).expect("no fault");
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert!(rows[1].contains("chart"), "{rows:?}");
    }

    #[test]
    fn a_changed_missing_or_added_file_is_named() {
        let directory = sample();
        fs::write(directory.path().join("LICENSE"), "other").expect("file");
        assert!(fault(&directory).contains("LICENSE was changed"));
        fs::remove_file(directory.path().join("LICENSE")).expect("removed");
        assert!(fault(&directory).contains("LICENSE is in SHA256SUMS"));
        fs::write(directory.path().join("LICENSE"), "text").expect("file");
        fs::write(directory.path().join("more"), "text").expect("file");
        assert!(fault(&directory).contains("more is not in"));
    }

    #[test]
    fn a_file_that_is_not_what_its_name_says_is_a_fault() {
        for (name, content) in [
            ("probe-handler-9.9.9.tgz", chart::archive(1).expect("chart")),
            ("probe-handler-1-linux-x86_64", b"no program".to_vec()),
            ("probe-handler-1-linux-sparc", b"no program".to_vec()),
            ("probe-handler-1.image.tar", Vec::new()),
            ("probe-handler-1.cdx.json", b"{}".to_vec()),
            (KREW, b"spec: {platforms: [{uri: a/b}]}".to_vec()),
            ("kubectl-probes-1.tar.gz", Vec::new()),
        ] {
            let directory = tempfile::tempdir().expect("directory");
            write(directory.path(), vec![(name.to_owned(), content)]).expect("written");
            assert!(fault(&directory).contains(name), "{name}");
        }
    }
}
