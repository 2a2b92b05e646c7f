//! Rules about the crates' manifests.

use super::File;

/// The one crate with its own lints: it denies more than the workspace.
const EBPF: &str = "probe-handler-ebpf/Cargo.toml";

/// Every crate inherits the workspace's lints. The eBPF crate also denies unused results, because an
/// ignored verdict would let a connection through.
pub fn lints(files: &[File]) -> Vec<String> {
    members(files)
        .filter(|file| {
            if file.path == EBPF {
                !has(file, "[lints.rust]", "unused_results = \"deny\"")
            } else {
                !has(file, "[lints]", "workspace = true")
            }
        })
        .map(|file| file.finding(0, "does not inherit the workspace's lints"))
        .collect()
}

/// A dependency has its version in the workspace's manifest: `name.workspace = true`.
pub fn versions(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in members(files) {
        for (number, section, line) in lines(file) {
            let is_dependency = section.trim_end_matches(']').ends_with("dependencies");
            if is_dependency && line.contains('=') && !line.contains("workspace = true") {
                findings.push(file.finding(number, "dependency does not use `workspace = true`"));
            }
            if section.contains("dependencies.") && line.starts_with("version") {
                findings.push(file.finding(
                    number,
                    "dependency has its own version; put it into the workspace's manifest",
                ));
            }
        }
    }
    findings
}

/// The manifests of members. The fuzz targets' is a root itself.
fn members(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|file| {
        file.path.ends_with("/Cargo.toml") && !file.text.lines().any(|line| line == "[workspace]")
    })
}

/// Line number, section heading and text of each line that is neither heading, blank nor comment.
fn lines(file: &File) -> impl Iterator<Item = (usize, &str, &str)> {
    let mut section = "";
    file.text
        .lines()
        .enumerate()
        .filter_map(move |(number, line)| {
            let line = line.trim();
            if line.starts_with('[') {
                section = line;
                return None;
            }
            let is_text = !line.is_empty() && !line.starts_with('#');
            is_text.then_some((number, section, line))
        })
}

fn has(file: &File, section: &str, line: &str) -> bool {
    lines(file).any(|(_, s, l)| s == section && l.starts_with(line))
}

#[cfg(test)]
mod tests {
    use super::super::tests::file;
    use super::*;

    #[test]
    fn a_crate_without_lints_is_found() {
        let good = file("a/Cargo.toml", "[package]\n[lints]\nworkspace = true\n");
        assert!(lints(&[good]).is_empty());
        let bad = file("a/Cargo.toml", "[package]\nworkspace = true\n");
        assert_eq!(
            lints(&[bad]),
            ["a/Cargo.toml:1: does not inherit the workspace's lints"]
        );
        let ebpf = file(EBPF, "[lints.rust]\nunused_results = \"deny\" # why\n");
        assert!(lints(&[ebpf]).is_empty());
        assert_eq!(lints(&[file(EBPF, "[lints]\nworkspace = true\n")]).len(), 1);
        assert!(lints(&[file("Cargo.toml", "[workspace]\n")]).is_empty());
    }

    #[test]
    fn a_version_in_a_member_is_found() {
        let good =
            "[dependencies]\na.workspace = true\nb = { workspace = true, features = [\"c\"] }\n";
        assert!(versions(&[file("a/Cargo.toml", good)]).is_empty());
        for bad in [
            "[dependencies]\na = \"1\"\n",
            "[dev-dependencies]\na = { version = \"1\" }\n",
            "[target.'cfg(unix)'.dependencies]\na = \"1\"\n",
            "[dependencies.a]\nversion = \"1\"\n",
        ] {
            assert_eq!(versions(&[file("a/Cargo.toml", bad)]).len(), 1, "{bad}");
        }
        assert!(versions(&[file("a/Cargo.toml", "[package]\nversion = \"1\"\n")]).is_empty());
    }
}
