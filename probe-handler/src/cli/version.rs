//! `probe-handler version`.

use std::process::ExitCode;

use status_view::output;
use support::build::DESCRIPTION;

/// Prints version, commit and build.
pub fn run() -> ExitCode {
    output::print(|out| writeln!(out, "probe-handler {DESCRIPTION}"))
}
