//! `probe-handler version`.

use std::process::ExitCode;

use super::output;

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit it was built from, as far as the build was told (`PROBE_HANDLER_COMMIT`).
pub const COMMIT: &str = match option_env!("PROBE_HANDLER_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Prints version and commit.
pub fn run() -> ExitCode {
    output::print(|out| writeln!(out, "probe-handler {VERSION} (commit {COMMIT})"))
}
