//! Third-party crates: which crates a program contains, their licences, and the licence texts.
//!
//! Cargo itself reports all of it: `cargo metadata` for every package of the lock file, `cargo tree` for those of one program
//! with its features.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::image::sha256;
use crate::shell::{cargo, display, output};

/// The target of released programs, which do not contain dependencies for other systems.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Packages with a program or an object in the image.
pub const DAEMON: &[&str] = &["probe-handler", "probe-handler-ebpf"];
/// The package of the kubectl plugin.
pub const PLUGIN: &[&str] = &["kubectl-probes"];

/// A package as `cargo metadata` reports it.
#[derive(Clone, Debug, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// An SPDX expression.
    pub license: Option<String>,
    /// `None`: a package of this repository.
    pub source: Option<String>,
    pub manifest_path: PathBuf,
    #[serde(default)]
    dependencies: Vec<Dependency>,
}

#[derive(Clone, Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `None`: a normal dependency.
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// Every package that this repository may compile on its target.
///
/// # Errors
/// Cargo can't resolve or download them.
pub fn all() -> Result<Vec<Package>> {
    let mut command = cargo();
    command.args(["metadata", "--locked", "--format-version", "1"]);
    command.args(["--filter-platform", TARGET]);
    let text = output(&mut command).with_context(|| format!("`{}` fails", display(&command)))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo's metadata")?;
    Ok(metadata.packages)
}

/// The third-party packages that are compiled into these packages of this repository, sorted by name and version.
///
/// # Errors
/// Those of [`all`].
pub fn shipped(packages: &[&str]) -> Result<Vec<Package>> {
    let mut wanted = BTreeSet::new();
    for package in packages {
        let mut command = cargo();
        command.args(["tree", "--locked", "--package", package, "--target", TARGET]);
        command.args(["--edges", "normal", "--prefix", "none", "--format", "{p}"]);
        let text =
            output(&mut command).with_context(|| format!("`{}` fails", display(&command)))?;
        wanted.extend(text.lines().filter_map(name_and_version));
    }
    let mut found: Vec<Package> = all()?
        .into_iter()
        .filter(|package| package.source.is_some())
        .filter(|package| wanted.contains(&(package.name.clone(), package.version.clone())))
        .collect();
    found.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    ensure!(!found.is_empty(), "cargo lists no dependency");
    Ok(found)
}

/// `anyhow v1.0.100`, with a path, `(proc-macro)` or `(*)` behind it.
fn name_and_version(line: &str) -> Option<(String, String)> {
    let mut words = line.split_whitespace();
    let name = words.next()?;
    let version = words.next()?.strip_prefix('v')?;
    Some((name.to_owned(), version.to_owned()))
}

/// The names of the third-party packages that a crate of the image names in its manifest.
pub fn direct(
    all: &[Package],
    shipped: &[Package],
    daemons: impl Fn(&Path) -> bool,
) -> BTreeSet<String> {
    let shipped: BTreeSet<&str> = shipped.iter().map(|package| &package.name[..]).collect();
    all.iter()
        .filter(|package| package.source.is_none() && daemons(&package.manifest_path))
        .flat_map(|package| &package.dependencies)
        .filter(|dependency| dependency.kind.is_none())
        .filter(|dependency| shipped.contains(&dependency.name[..]))
        .map(|dependency| dependency.name.clone())
        .collect()
}

/// The texts of the licences of `packages`, each text once, for `place`: an image or archive. Contains no path of this machine.
///
/// # Errors
/// A package can't be read.
pub fn license_texts(packages: &[Package], place: &str) -> Result<String> {
    let mut texts: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    let mut rows = String::new();
    for Package {
        name,
        version,
        license,
        manifest_path,
        ..
    } in packages
    {
        let license = license.as_deref().unwrap_or("no expression");
        rows += &format!("{name} {version}: {license}\n");
        for text in texts_of(manifest_path)? {
            let users = &mut texts
                .entry(sha256(text.as_bytes()))
                .or_insert((text, Vec::new()))
                .1;
            let user = format!("{name} {version}");
            if !users.contains(&user) {
                users.push(user);
            }
        }
    }
    let mut all = format!(
        "The program in this {place} contains the crates below, Rust's standard library (MIT OR Apache-2.0), \
         and code of the GNU C library (LGPL-2.1-or-later): its object files can be replaced by building the program again \
         from its sources.\n\n{rows}"
    );
    for (text, users) in texts.values() {
        all += &format!(
            "\n{}\n{}\n\n{}\n",
            "=".repeat(80),
            users.join(", "),
            text.trim_end()
        );
    }
    Ok(all)
}

/// The files of a package that are licences by their names, sorted.
fn texts_of(manifest: &Path) -> Result<Vec<String>> {
    const NAMES: [&str; 5] = ["license", "licence", "copying", "notice", "copyright"];
    let directory = manifest
        .parent()
        .context("a manifest without a directory")?;
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_lowercase();
        if NAMES.iter().any(|start| name.starts_with(start)) && entry.path().is_file() {
            paths.push(entry.path());
        }
    }
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let text = fs::read(path).with_context(|| path.display().to_string())?;
            Ok(String::from_utf8_lossy(&text).replace("\r\n", "\n"))
        })
        .collect()
}

/// Whether an SPDX expression can be satisfied with the licences of `allowed`.
///
/// # Errors
/// It is not a valid expression.
pub fn is_allowed(expression: &str, allowed: &[&str]) -> Result<bool> {
    let expression = match spdx::Expression::parse_mode(expression, spdx::ParseMode::LAX) {
        Ok(expression) => expression,
        Err(error) => bail!("{expression:?} is no SPDX expression: {}", error.reason),
    };
    Ok(expression.evaluate(|license| allowed.contains(&license.to_string().as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_is_allowed_if_the_expression_can_be_satisfied() {
        let allowed = [
            "MIT",
            "Apache-2.0",
            "BSD-3-Clause",
            "Apache-2.0 WITH LLVM-exception",
        ];
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-2.0-only OR MIT",
            "(Apache-2.0 OR GPL-3.0-only) AND BSD-3-Clause",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(is_allowed(good, &allowed).expect(good), "{good}");
        }
        for bad in ["GPL-3.0-only", "MIT AND GPL-2.0-only", "AGPL-3.0-only"] {
            assert!(!is_allowed(bad, &allowed).expect(bad), "{bad}");
        }
        assert!(is_allowed("anything", &allowed).is_err());
    }

    #[test]
    fn cargos_tree_is_read() {
        let line = "aya-ebpf-macros v0.1.2 (proc-macro) (*)";
        let expected = ("aya-ebpf-macros".to_owned(), "0.1.2".to_owned());
        assert_eq!(name_and_version(line), Some(expected));
        assert_eq!(name_and_version(""), None);
    }

    #[test]
    fn each_text_is_given_once_with_its_users() {
        let directory = tempfile::tempdir().expect("directory");
        let mut packages = Vec::new();
        for (name, text) in [("a", "same\n"), ("b", "same\n"), ("c", "other\n")] {
            let home = directory.path().join(name);
            fs::create_dir(&home).expect("directory");
            fs::write(home.join("LICENSE-MIT"), text).expect("file");
            packages.push(Package {
                name: name.to_owned(),
                version: "1.0.0".to_owned(),
                license: Some("MIT".to_owned()),
                source: None,
                manifest_path: home.join("Cargo.toml"),
                dependencies: Vec::new(),
            });
        }
        let text = license_texts(&packages, "image").expect("texts");
        assert_eq!(text.matches("same").count(), 1, "{text}");
        assert!(text.contains("a 1.0.0, b 1.0.0\n\nsame"), "{text}");
        assert!(text.contains("c 1.0.0: MIT"), "{text}");
        let path = directory.path().display().to_string();
        assert!(!text.contains(&path), "{text}");
    }
}
