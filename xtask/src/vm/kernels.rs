//! Finds the Debian package for a kernel's name, such as 6.1: the suite, and the package in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::image::COMPANIONS;
use crate::apt::Suite;

/// The suites that have kernels, oldest first.
const SUITES: [&str; 9] = [
    "bullseye-security",
    "bullseye",
    "bookworm-security",
    "bookworm",
    "trixie-security",
    "trixie",
    "trixie-backports",
    "sid",
    "experimental",
];

/// The suite to try first for a kernel, because downloading the lists of all suites takes a minute.
const FIRST: [(&str, &str); 4] = [
    ("5.10", "bullseye-security"),
    ("6.1", "bookworm-security"),
    ("6.12", "trixie-security"),
    ("7.2", "sid"),
];

/// The kernels that run when none is given.
pub const DEFAULT: [&str; 3] = ["5.10", "6.1", "6.12"];

/// The search ends after this many unreachable suites.
const MAX_UNREACHABLE: usize = 2;

const PREFIX: &str = "linux-image-";
/// That of the guests, whatever this machine's is.
const ARCHITECTURE: &str = "amd64";
const FLAVOUR: &str = "-cloud-amd64";

/// What to do without an archive.
const BY_PATH: &str = "a kernel can be given by path: --kernel-deb FILE, or --bzimage FILE --modules DIR \
                       (the directory that holds `kernel/`)";

/// Why there is no package.
#[derive(Debug)]
pub enum Error {
    /// No suite has a kernel of that name; the text lists the available ones.
    Unknown(String),
    /// The kernel exists or may exist, but cannot be downloaded.
    Missing(anyhow::Error),
}

/// The package of kernel `name`, downloaded unless an earlier run has done so.
///
/// # Errors
/// When no suite has such a kernel (the message lists the available ones), or the download fails.
pub fn package(name: &str, cache: &Path) -> Result<PathBuf, Error> {
    let directory = cache.join("packages");
    if let Some(cached) = newest(file_names(&directory), name) {
        return Ok(directory.join(cached));
    }
    let first = FIRST.iter().find(|(kernel, _)| *kernel == name);
    let first = first.map(|(_, suite)| *suite);
    // Next the release's main suite, because the security suite may be on another mirror.
    let sibling = first.and_then(|suite| suite.strip_suffix("-security"));
    let others = SUITES
        .into_iter()
        .filter(|suite| Some(*suite) != first && Some(*suite) != sibling);
    let mut faults = Vec::new();
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        for suite in first.into_iter().chain(sibling).chain(others) {
            match fetch(name, suite, cache, &directory) {
                Ok(Some(path)) => return Ok(path),
                Ok(None) => {}
                Err(error) => faults.push(format!("{error:#}")),
            }
            // One suite may be gone; without a network all of them fail, each after a timeout.
            if faults.len() == MAX_UNREACHABLE {
                break;
            }
        }
    }
    if faults.is_empty() {
        return Err(Error::Unknown(unknown(name, cache)));
    }
    faults.sort();
    faults.dedup();
    Err(Error::Missing(anyhow!(
        "package {PREFIX}{name}*{FLAVOUR} of {} cannot be downloaded: {}; {BY_PATH}",
        first.unwrap_or("any suite"),
        faults.join("; ")
    )))
}

/// Downloads the newest package of that name in one suite; `None` if the suite has none.
fn fetch(name: &str, suite: &str, cache: &Path, directory: &Path) -> Result<Option<PathBuf>> {
    let suite = Suite::new(suite, cache, ARCHITECTURE)?;
    if !suite.has_lists() {
        suite.update()?;
    }
    let find = || newest(suite.packages(&format!("{PREFIX}{name}")), name);
    let Some(package) = find() else {
        return Ok(None);
    };
    if download(&suite, &package, directory).is_err() {
        // The archive may have changed since the lists were downloaded.
        suite.update()?;
        let package =
            find().with_context(|| format!("{} no longer has {package}", suite.name()))?;
        download(&suite, &package, directory)?;
    }
    let fetched = newest(file_names(directory), name);
    Ok(fetched.map(|file| directory.join(file)))
}

/// Downloads a kernel's packages, the main one last: if it is present, all are.
fn download(suite: &Suite, package: &str, directory: &Path) -> Result<()> {
    let rest = package.strip_prefix(PREFIX).unwrap_or(package);
    for companion in COMPANIONS.map(|companion| format!("{companion}{rest}")) {
        if suite.packages(&companion).contains(&companion) {
            suite.download(&companion, directory)?;
        }
    }
    suite.download(package, directory)
}

/// The newest cloud kernel of release `kernel` in `names`, which are packages or their files.
fn newest(names: Vec<String>, kernel: &str) -> Option<String> {
    names
        .into_iter()
        .filter(|name| version(name).is_some_and(|version| matches_release(version, kernel)))
        .max_by_key(|name| version(name).map(numbers))
}

/// The kernel's version in the name of a package or package file; `None` for other packages.
fn version(name: &str) -> Option<&str> {
    let package = name.split('_').next().unwrap_or(name);
    package.strip_prefix(PREFIX)?.strip_suffix(FLAVOUR)
}

/// 6.1.0-53 matches 6.1, and 6.12.94 does not.
fn matches_release(version: &str, kernel: &str) -> bool {
    version
        .strip_prefix(kernel)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// All numbers in a name, for comparing names as versions.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn file_names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.ends_with(".deb"))
        .collect()
}

/// The message for a name that no suite has; lists the available kernels.
fn unknown(name: &str, cache: &Path) -> String {
    let mut lines = String::new();
    let mut faults = 0;
    for suite in SUITES {
        let found = Suite::new(suite, cache, ARCHITECTURE).and_then(|suite| {
            if !suite.has_lists() {
                suite.update()?;
            }
            Ok(suite.packages(PREFIX))
        });
        let kernels = match found {
            Ok(names) => series(&names).join(" "),
            Err(error) => {
                faults += 1;
                format!("({error:#})")
            }
        };
        lines.push_str(&format!("\n  {suite:18} {kernels}"));
        if faults == MAX_UNREACHABLE {
            break;
        }
    }
    format!(
        "no kernel is called {name:?}; Debian's suites have (a full version, as 6.1.0-53, names one of \
         several):{lines}\n{BY_PATH}"
    )
}

/// The first two numbers of each version, without duplicates, sorted.
fn series(names: &[String]) -> Vec<String> {
    let series: BTreeSet<(u64, u64)> = names
        .iter()
        .filter_map(|name| version(name))
        .filter_map(|version| match numbers(version)[..] {
            [major, minor, ..] => Some((major, minor)),
            _ => None,
        })
        .collect();
    series
        .into_iter()
        .map(|(major, minor)| format!("{major}.{minor}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(versions: &[&str]) -> Vec<String> {
        let name = |version: &&str| format!("linux-image-{version}");
        versions.iter().map(name).collect()
    }

    #[test]
    fn a_release_matches_whole_numbers_only() {
        let have = names(&[
            "6.1.0-53-cloud-amd64",
            "6.12.94+deb13-cloud-amd64",
            "6.1.0-54-amd64",
        ]);
        assert_eq!(
            newest(have.clone(), "6.1").as_deref(),
            Some("linux-image-6.1.0-53-cloud-amd64")
        );
        assert_eq!(
            newest(have.clone(), "6.12").as_deref(),
            Some("linux-image-6.12.94+deb13-cloud-amd64")
        );
        assert_eq!(
            newest(have.clone(), "6.1.0-53").as_deref(),
            Some("linux-image-6.1.0-53-cloud-amd64")
        );
        assert_eq!(
            newest(have, "6"),
            Some("linux-image-6.12.94+deb13-cloud-amd64".into())
        );
    }

    #[test]
    fn the_newest_is_chosen_and_never_a_metapackage() {
        let have = names(&[
            "5.10.0-9-cloud-amd64",
            "5.10.0-46-cloud-amd64",
            "5.10-cloud-amd64",
            "5.10.0-47-cloud-amd64-unsigned",
            "5.10.0-48-cloud-amd64-dbg",
            "cloud-amd64",
        ]);
        assert_eq!(
            newest(have, "5.10").as_deref(),
            Some("linux-image-5.10.0-46-cloud-amd64")
        );
        assert_eq!(newest(names(&["6.1.0-1-cloud-amd64"]), "5.10"), None);
    }

    #[test]
    fn a_package_file_is_recognised_by_its_name() {
        let file = "linux-image-6.12.90+deb13.1-cloud-amd64_6.12.90-2_amd64.deb";
        assert_eq!(version(file), Some("6.12.90+deb13.1"));
        assert_eq!(newest(vec![file.into()], "6.12").as_deref(), Some(file));
    }

    #[test]
    fn available_kernels_are_listed_once_and_in_order() {
        let have = names(&[
            "6.12.94+deb13-cloud-amd64",
            "6.1.0-53-cloud-amd64",
            "6.12.90+deb13-cloud-amd64",
        ]);
        assert_eq!(series(&have), ["6.1", "6.12"]);
    }
}
