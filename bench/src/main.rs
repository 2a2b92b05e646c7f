//! `cargo xtask bench`: measures the cost of a probe with probe-handler, relative to the same probe of the same app without a
//! mesh, in the same run; and what a node's pods, restarts and load cost.
//!
//! Times are medians over interleaved samples (direct, ours, direct, ours ...), so that other load on the machine affects
//! both alike. Compare ratios, not the microseconds of two runs. Pods, apps, sidecars and kubelets are those of the testbed,
//! whose program must be in the same directory.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bpf;
mod many_pods;
mod measure;
mod node;
mod prober;
mod probes;
mod process;
mod webhook;

/// Compare probes through probe-handler with the same probes without a mesh.
#[derive(Debug, Parser)]
struct CommandLine {
    #[command(flatten)]
    measure: measure::Args,
    #[command(subcommand)]
    child: Option<Child>,
}

#[derive(Debug, Subcommand)]
enum Child {
    /// Probe repeatedly (started by the benchmarks)
    #[command(hide = true)]
    Prober(prober::Args),
}

fn main() -> ExitCode {
    let args = CommandLine::parse();
    let done = match args.child {
        None => measure::main(&args.measure),
        Some(Child::Prober(args)) => prober::main(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::CommandLine::command().debug_assert();
    }
}
