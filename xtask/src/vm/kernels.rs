//! From a kernel's name, as 6.1, to a package of Debian's: which suite has it, and which of its packages.

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

/// Where to look first: fetching the lists of all suites would take a minute.
const FIRST: [(&str, &str); 4] = [
    ("5.10", "bullseye-security"),
    ("6.1", "bookworm-security"),
    ("6.12", "trixie-security"),
    ("7.2", "sid"),
];

/// The kernels that are run when none is named.
pub const DEFAULT: [&str; 3] = ["5.10", "6.1", "6.12"];

/// After so many suites that could not be looked into no other is tried.
const MAX_UNREACHABLE: usize = 2;

const PREFIX: &str = "linux-image-";
const FLAVOUR: &str = "-cloud-amd64";

/// How to go on without an archive.
const BY_PATH: &str = "a kernel can be given by path: --kernel-deb FILE, or --bzimage FILE --modules DIR \
                       (the directory that holds `kernel/`)";

/// Why there is no package.
#[derive(Debug)]
pub enum Error {
    /// No suite has a kernel of that name; the text lists those that can be had.
    Unknown(String),
    /// There is one, or may be, and it cannot be had.
    Missing(anyhow::Error),
}

/// The package of the kernel that `name` names, fetched if no earlier run did.
///
/// # Errors
/// When no suite has such a kernel, with the names of those that can be had; when it cannot be fetched.
pub fn package(name: &str, cache: &Path) -> Result<PathBuf, Error> {
    let directory = cache.join("packages");
    if let Some(cached) = newest(file_names(&directory), name) {
        return Ok(directory.join(cached));
    }
    let first = FIRST.iter().find(|(kernel, _)| *kernel == name);
    let first = first.map(|(_, suite)| *suite);
    // The release itself next, for its security suite may be on a mirror of its own.
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
            // One suite may be gone; without a network all of them fail, each after some patience.
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
        "package {PREFIX}{name}*{FLAVOUR} of {} cannot be had: {}; {BY_PATH}",
        first.unwrap_or("any suite"),
        faults.join("; ")
    )))
}

/// The newest package of that name in one suite; none if it has none.
fn fetch(name: &str, suite: &str, cache: &Path, directory: &Path) -> Result<Option<PathBuf>> {
    let suite = Suite::new(suite, cache)?;
    if !suite.has_lists() {
        suite.update()?;
    }
    let find = || newest(suite.packages(&format!("{PREFIX}{name}")), name);
    let Some(package) = find() else {
        return Ok(None);
    };
    if download(&suite, &package, directory).is_err() {
        // The archive may have moved on since the lists were fetched.
        suite.update()?;
        let package =
            find().with_context(|| format!("{} has no {package} any more", suite.name()))?;
        download(&suite, &package, directory)?;
    }
    let fetched = newest(file_names(directory), name);
    Ok(fetched.map(|file| directory.join(file)))
}

/// Fetches a kernel's packages, the one by which it is known last: once that is there, all are.
fn download(suite: &Suite, package: &str, directory: &Path) -> Result<()> {
    let rest = package.strip_prefix(PREFIX).unwrap_or(package);
    for companion in COMPANIONS.map(|companion| format!("{companion}{rest}")) {
        if suite.packages(&companion).contains(&companion) {
            suite.download(&companion, directory)?;
        }
    }
    suite.download(package, directory)
}

/// The newest of `names` (of packages, or of their files) that is a cloud kernel called `kernel`.
fn newest(names: Vec<String>, kernel: &str) -> Option<String> {
    names
        .into_iter()
        .filter(|name| version(name).is_some_and(|version| matches_release(version, kernel)))
        .max_by_key(|name| version(name).map(numbers))
}

/// The kernel's version in a package's or package file's name; none for another package.
fn version(name: &str) -> Option<&str> {
    let package = name.split('_').next().unwrap_or(name);
    package.strip_prefix(PREFIX)?.strip_suffix(FLAVOUR)
}

/// 6.1.0-53 is 6.1, and 6.12.94 is not.
fn matches_release(version: &str, kernel: &str) -> bool {
    version
        .strip_prefix(kernel)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// All numbers in a name, by which names compare as versions do.
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

/// What to say of a name that no suite has: those that can be had.
fn unknown(name: &str, cache: &Path) -> String {
    let mut lines = String::new();
    let mut faults = 0;
    for suite in SUITES {
        let found = Suite::new(suite, cache).and_then(|suite| {
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

/// The first two numbers of each version, each once, in their order.
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
    fn a_name_is_a_whole_number_of_a_version() {
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
    fn the_newest_is_taken_and_never_an_empty_package() {
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
    fn a_package_file_is_known_by_its_name() {
        let file = "linux-image-6.12.90+deb13.1-cloud-amd64_6.12.90-2_amd64.deb";
        assert_eq!(version(file), Some("6.12.90+deb13.1"));
        assert_eq!(newest(vec![file.into()], "6.12").as_deref(), Some(file));
    }

    #[test]
    fn what_can_be_had_is_listed_once_and_in_order() {
        let have = names(&[
            "6.12.94+deb13-cloud-amd64",
            "6.1.0-53-cloud-amd64",
            "6.12.90+deb13-cloud-amd64",
        ]);
        assert_eq!(series(&have), ["6.1", "6.12"]);
    }
}
