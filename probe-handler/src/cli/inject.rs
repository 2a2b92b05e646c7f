//! `probe-handler inject`: rewrites the probes in a manifest, without a cluster.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use similar::TextDiff;

use super::{config, refuse};
use inject::manifest::{self, Outcome};
use status_view::output;
use webhook::revert::revert;
use webhook::rewrite::{Rewriting, admit_in};

/// Flags of `inject`.
#[derive(Debug, Args)]
pub struct InjectArgs {
    /// Manifest, YAML or JSON; `-` for standard input
    #[arg(short, long, value_name = "FILE|-")]
    filename: PathBuf,

    /// Restore the original probes
    #[arg(long)]
    revert: bool,

    /// Print what would change, as a unified diff, instead of the manifest
    #[arg(long)]
    diff: bool,

    /// Port of rewritten probes; a pod that is already rewritten keeps its port
    #[arg(long, env = "PROBE_HANDLER_REWRITE_PORT", value_name = "PORT", default_value_t = Rewriting::default().port.to_string())]
    rewrite_port: String,

    /// Prefix of the paths of rewritten probes, which are Istio's:
    /// `/app-health/<container>/livez`
    #[arg(
        long,
        env = "PROBE_HANDLER_REWRITE_PREFIX",
        value_name = "PATH",
        default_value = ""
    )]
    rewrite_prefix: String,
}

/// Prints the manifest with its pods rewritten, and warnings to standard error. If the manifest can't be
/// read or is not YAML, prints nothing and returns exit code 1.
pub fn run(args: &InjectArgs) -> ExitCode {
    let rewriting = match config::rewriting(&args.rewrite_port, &args.rewrite_prefix) {
        Ok(rewriting) => rewriting,
        Err(mistakes) => return refuse(&mistakes),
    };
    let (name, read) = read(&args.filename);
    let text = match read {
        Ok(text) => text,
        Err(error) => return output::fail(&format!("{name}: {error}")),
    };
    match change(args.revert, &rewriting, &text) {
        Ok(outcome) => {
            for warning in &outcome.warnings {
                // If standard error fails, there is nowhere to report it.
                let _ = writeln!(
                    io::stderr().lock(),
                    "{name}: {}",
                    output::printable(warning)
                );
            }
            let printed = if args.diff {
                diff(&diff_name(&args.filename), &text, &outcome.text)
            } else {
                outcome.text
            };
            output::print(|out| out.write_all(printed.as_bytes()))
        }
        Err(error) => {
            let error = error.to_string();
            output::fail(&format!("{name}: {}", output::printable(&error)))
        }
    }
}

fn read(path: &Path) -> (String, io::Result<String>) {
    if path == Path::new("-") {
        let mut text = String::new();
        let read = io::stdin().lock().read_to_string(&mut text);
        ("standard input".to_owned(), read.map(|_| text))
    } else {
        (path.display().to_string(), fs::read_to_string(path))
    }
}

fn change(restore: bool, rewriting: &Rewriting, text: &str) -> Result<Outcome, manifest::Error> {
    match restore {
        true => manifest::change(text, |_, pod| revert(pod)),
        false => manifest::change(text, |namespace, pod| admit_in(namespace, pod, rewriting)),
    }
}

/// A unified diff that `patch -p0` takes; empty if nothing changes.
fn diff(name: &str, old: &str, new: &str) -> String {
    // Not `from_lines`, which takes a lone carriage return for the end of a line.
    let (old, new) = (lines(old), lines(new));
    TextDiff::configure()
        .newline_terminated(true)
        .diff_slices(&old, &new)
        .unified_diff()
        .header(name, name)
        .to_string()
}

fn lines(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

/// The name of the file in a diff. `patch` refuses absolute names, names with `..` and symbolic links, so the name is
/// that of the file itself, relative to the current directory; for a file outside of it, relative to the root directory.
fn diff_name(path: &Path) -> String {
    if path == Path::new("-") {
        return quoted(Path::new("standard input"));
    }
    let directory = fs::canonicalize(".").unwrap_or_default();
    // A pipe has no name of its own.
    let file = fs::canonicalize(path).unwrap_or_else(|_| directory.join(path));
    quoted(patched(&directory, &file))
}

/// `file` relative to `directory`, or to the root directory.
fn patched<'a>(directory: &Path, file: &'a Path) -> &'a Path {
    file.strip_prefix(directory)
        .or_else(|_| file.strip_prefix("/"))
        .unwrap_or(file)
}

/// A file name as in the diffs of git: after one with spaces a tab ends the name; others are quoted as in C if they
/// have characters that would end the line or the name.
fn quoted(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    match path.to_str() {
        Some(name) if !name.contains(|c: char| c.is_control() || "\"\\".contains(c)) => {
            let tab = if name.contains(char::is_whitespace) {
                "\t"
            } else {
                ""
            };
            format!("{name}{tab}")
        }
        _ => {
            let bytes = bytes.iter().map(|&byte| match byte {
                b'"' | b'\\' => format!("\\{}", char::from(byte)),
                b' '..=b'~' => char::from(byte).to_string(),
                _ => format!("\\{byte:03o}"),
            });
            format!("\"{}\"", bytes.collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_patch_takes() {
        for (file, name) in [
            ("/srv/app.yaml", "app.yaml"),
            ("/srv/deploy/app.yaml", "deploy/app.yaml"),
            ("/srv/my app.yaml", "my app.yaml\t"),
            ("/elsewhere/app.yaml", "elsewhere/app.yaml"),
            ("/srv2/app.yaml", "srv2/app.yaml"),
            ("/srv/ä.yaml", "ä.yaml"),
            ("/srv/a\tb.yaml", "\"a\\011b.yaml\""),
            ("/srv/a\n+b.yaml", "\"a\\012+b.yaml\""),
            ("/srv/\"a\\.yaml", "\"\\\"a\\\\.yaml\""),
        ] {
            let file = patched(Path::new("/srv"), Path::new(file));
            assert_eq!(quoted(file), name);
        }
    }

    #[test]
    fn a_name_leads_to_the_file_itself() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("app.yaml");
        fs::write(&file, "").unwrap();
        let link = directory.path().join("link.yaml");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let real = fs::canonicalize(&file).unwrap();
        let expected = real.strip_prefix("/").unwrap().display().to_string();
        for path in [link, directory.path().join("./x/../app.yaml")] {
            fs::create_dir_all(directory.path().join("x")).unwrap();
            assert_eq!(diff_name(&path), expected);
        }
    }

    #[test]
    fn a_diff_keeps_how_lines_end() {
        assert_eq!(
            diff("a", "1\r\n2\r3\nend", "1\r\n2\rx\nend"),
            "--- a\n+++ a\n@@ -1,3 +1,3 @@\n 1\r\n-2\r3\n+2\rx\n end\n\\ No newline at end of file\n"
        );
    }
}
