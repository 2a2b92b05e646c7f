//! The program `kubectl-probes`, which kubectl runs as `kubectl probes`.

use std::process::ExitCode;

fn main() -> ExitCode {
    kubectl_probes::cli::run(std::env::args_os())
}
