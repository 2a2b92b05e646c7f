//! `probe-handler version`.

use std::process::ExitCode;

use super::output;
use support::build::{COMMIT, VERSION};

/// Prints version and commit.
pub fn run() -> ExitCode {
    output::print(|out| writeln!(out, "probe-handler {VERSION} (commit {COMMIT})"))
}
