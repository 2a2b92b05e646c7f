//! `cargo xtask tidy`: rules of this repository that no compiler checks.
//!
//! A rule is a function from a list of files to findings, so that its tests need no files on disk.

mod dependencies;
mod docs;
mod manifests;
mod sources;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::shell::root;

/// A text file of the repository.
#[derive(Clone, Debug)]
struct File {
    /// Relative to the root.
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// A finding about a line; `line` counts from 0.
    fn finding(&self, line: usize, what: impl AsRef<str>) -> String {
        format!("{}:{}: {}", self.path, line + 1, what.as_ref())
    }
}

/// A rule returns one line for each violation.
type Rule = fn(&[File]) -> Vec<String>;

const RULES: [(&str, Rule); 9] = [
    (
        "every source file opens with a module doc",
        sources::module_docs,
    ),
    ("every source file is part of a crate", sources::orphans),
    ("no source file is longer than 600 lines", sources::lengths),
    ("no stubs, no ignored tests", sources::stubs),
    (
        "types shared with the kernel are plain integers",
        sources::shared_types,
    ),
    (
        "every crate inherits the workspace's lints",
        manifests::lints,
    ),
    (
        "dependency versions are only in the workspace's manifest",
        manifests::versions,
    ),
    ("the commands in the documentation exist", docs::commands),
    (
        "no file names a path of a developer's machine",
        docs::machine_paths,
    ),
];

/// The result of a check.
#[derive(Debug, Default)]
pub struct Report {
    /// Rules without violations.
    pub kept: u64,
    /// Rules with violations.
    pub broken: u64,
    /// A line for each broken rule, followed by a line for each violation.
    pub findings: Vec<String>,
}

/// Checks every rule and prints the findings.
pub fn run() -> Result<()> {
    let report = check()?;
    for finding in &report.findings {
        println!("{finding}");
    }
    println!("tidy: {} rules hold, {} broken", report.kept, report.broken);
    if report.broken > 0 {
        bail!("the repository breaks its rules: fix the findings above");
    }
    Ok(())
}

/// Checks every rule.
pub fn check() -> Result<Report> {
    let mut files = Vec::new();
    collect(root(), &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut report = Report::default();
    let by_files = RULES.iter().map(|(name, rule)| (*name, rule(&files)));
    let by_cargo = dependencies::check(&files)?;
    for (name, violations) in by_files.chain(by_cargo) {
        if violations.is_empty() {
            report.kept += 1;
        } else {
            report.broken += 1;
            report.findings.push(format!("broken: {name}"));
            let violations = violations.iter().map(|violation| format!("  {violation}"));
            report.findings.extend(violations);
        }
    }
    Ok(report)
}

/// Reads every text file below a directory, except those of git and cargo.
fn collect(directory: &Path, files: &mut Vec<File>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        let kind = entry.file_type()?;
        if kind.is_dir() && name != "target" && name != ".git" {
            collect(&path, files)?;
        } else if kind.is_file()
            && name != ".git"
            && name != "Cargo.lock"
            && let Ok(text) = fs::read_to_string(&path)
        {
            let path = path.strip_prefix(root()).unwrap_or(&path);
            files.push(File {
                path: path.to_string_lossy().into_owned(),
                text,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file for a rule's test.
    pub fn file(path: &str, text: &str) -> File {
        File {
            path: path.into(),
            text: text.into(),
        }
    }

    #[test]
    fn the_files_of_this_repository_are_found() {
        let mut files = Vec::new();
        collect(root(), &mut files).expect("readable");
        let has = |path: &str| files.iter().any(|file| file.path == path);
        assert!(has("xtask/src/tidy.rs") && has("Cargo.toml"));
        assert!(!files.iter().any(|file| file.path.starts_with("target/")));
    }
}
