//! Rules about third-party crates: their source, their licences, and that the documentation lists those of the daemon.

use std::collections::BTreeSet;

use anyhow::Result;

use super::File;
use crate::dependencies::{self, Package};

/// The only source.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Permissive licences. Another licence needs a decision about its requirements, and whether the image meets
/// them.
const LICENSES: [&str; 10] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// The page that lists the direct dependencies of daemon and plugin.
const PAGE: &str = "docs/dependencies.md";

/// Name and findings of each rule.
///
/// # Errors
/// Cargo can't list the packages.
pub fn check(files: &[File]) -> Result<Vec<(&'static str, Vec<String>)>> {
    let all = dependencies::all()?;
    let programs = [dependencies::DAEMON, dependencies::PLUGIN].concat();
    let shipped = dependencies::shipped(&programs)?;
    let direct = dependencies::direct(&all, &shipped, |manifest| {
        manifest.components().any(|part| {
            let part = part.as_os_str().to_string_lossy();
            part == "crates" || part == "kubectl-probes" || part.starts_with("probe-handler-")
        }) || manifest.ends_with("probe-handler/Cargo.toml")
    });
    let page = files.iter().find(|file| file.path == PAGE);
    let page = page.map_or("", |file| &file.text);
    Ok(vec![
        ("every dependency is from crates.io", sources(&all)),
        ("every licence is permissive", licenses(&all)),
        (
            "docs/dependencies.md lists the dependencies of daemon and plugin",
            listed(page, &direct),
        ),
    ])
}

fn sources(packages: &[Package]) -> Vec<String> {
    let elsewhere = packages.iter().filter_map(|package| {
        let source = package.source.as_deref()?;
        (source != CRATES_IO).then(|| format!("{} {}: {source}", package.name, package.version))
    });
    elsewhere.collect()
}

fn licenses(packages: &[Package]) -> Vec<String> {
    let mut findings = Vec::new();
    for Package {
        name,
        version,
        license,
        ..
    } in packages
    {
        // This repository's own licences: the eBPF programs need one that is compatible with the GPL.
        if name.starts_with("probe-handler") {
            continue;
        }
        let license = license.as_deref().unwrap_or_default();
        match dependencies::is_allowed(license, &LICENSES) {
            Ok(true) => {}
            Ok(false) => findings.push(format!("{name} {version}: {license}")),
            Err(error) => findings.push(format!("{name} {version}: {error}")),
        }
    }
    findings
}

/// Rows of the page begin with the name in backquotes.
fn listed(page: &str, direct: &BTreeSet<String>) -> Vec<String> {
    let rows: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .collect();
    let missing = direct.difference(&rows);
    let missing = missing.map(|name| format!("{PAGE} lacks {name}"));
    let outdated = rows.difference(direct);
    let outdated =
        outdated.map(|name| format!("{PAGE} lists {name}, which neither daemon nor plugin uses"));
    missing.chain(outdated).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(license: &str, source: &str) -> Package {
        let package = serde_json::json!({
            "name": "a", "version": "1.0.0", "license": license, "source": source,
            "manifest_path": "/a/Cargo.toml",
        });
        serde_json::from_value(package).expect("a package")
    }

    #[test]
    fn a_package_from_git_is_a_finding() {
        assert_eq!(sources(&[package("MIT", CRATES_IO)]), Vec::<String>::new());
        assert_eq!(
            sources(&[package("MIT", "git+https://example.org/a")]).len(),
            1
        );
    }

    #[test]
    fn a_licence_outside_the_list_is_a_finding() {
        assert_eq!(
            licenses(&[package("GPL-2.0-only OR MIT", CRATES_IO)]),
            Vec::<String>::new()
        );
        for bad in ["GPL-2.0-only", "", "whatever"] {
            assert_eq!(licenses(&[package(bad, CRATES_IO)]).len(), 1, "{bad}");
        }
    }

    #[test]
    fn the_page_lists_exactly_the_dependencies() {
        let direct = ["aya".to_owned(), "tokio".to_owned()].into();
        let page = "| crate | purpose |\n|---|---|\n| `aya` | maps |\n| `url` | none |\n";
        let findings = listed(page, &direct);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].contains("lacks tokio") && findings[1].contains("lists url"));
    }
}
