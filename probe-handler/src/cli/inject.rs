//! `probe-handler inject`: rewrites the probes in a manifest, without a cluster.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use similar::TextDiff;

use super::{config, output, refuse};
use inject::manifest::{self, Outcome};
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
                diff(&name, &text, &outcome.text)
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
    TextDiff::from_lines(old, new)
        .unified_diff()
        .header(name, name)
        .to_string()
}
