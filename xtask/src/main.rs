//! `cargo xtask`: builds, tests, measures and demonstrates this repository from a clean clone.
//!
//! One file per subcommand. The commands that run something (`demo`, `test`, `bench`) run `setup` and
//! `build-ebpf` first, so that each of them works on a fresh machine.

mod apt;
mod counts;
mod demo;
mod dependencies;
mod digest;
mod dist;
mod e2e;
mod ebpf;
mod envoy;
mod fuzz;
mod helm;
mod image;
mod kubectl;
mod ldd;
mod plan;
mod progress;
mod promtool;
mod release;
mod setup;
mod shell;
mod static_build;
mod strip;
mod test;
mod tidy;
mod toolchain;
mod versions;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests and demonstrates probe-handler.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Show the output of cargo, apt and others instead of one line of progress
    #[arg(long, short, global = true)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what the eBPF build, the namespace suite and the virtual machines need; skips what is installed
    Setup(setup::Args),
    /// Build the eBPF programs into target/ebpf/probe-handler.bpf.o
    BuildEbpf(ebpf::BuildArgs),
    /// Run clippy on the eBPF crate with the compiler that builds it; warnings are errors
    LintEbpf,
    /// Show probes that fail in the mesh and pass with probe-handler (needs root)
    Demo(demo::DemoArgs),
    /// Run the repository checks (tidy), the unit tests, the namespace suite (needs root), and that suite on
    /// other kernels in virtual machines
    Test(test::Args),
    /// Benchmark probes against direct connections (needs root)
    Bench(demo::BenchArgs),
    /// Fuzz the parsers of bytes from outside
    Fuzz(fuzz::Args),
    /// Probe pods while apps, sidecars, kubelet and daemon fail by a random schedule, and count wrong verdicts (needs root)
    Chaos(demo::ChaosArgs),
    /// Build the daemon's container image as an archive; needs no container runtime
    Image(image::Args),
    /// Make all files of a release in one folder, reproducibly, or check such a folder
    Dist(dist::Args),
    /// Test the daemon in a cluster: real kubelet, pods of a STRICT mesh, an upgrade (needs KUBECONFIG)
    E2e(e2e::Args),
    /// Write the manual pages of the daemon's command line to target/man
    Man,
    /// Check the repository's own rules
    Tidy,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.verbose {
        progress::set_verbose();
    }
    let result = match cli.command {
        Command::Setup(args) => setup::all(&args),
        Command::BuildEbpf(args) => ebpf::build(&args),
        Command::LintEbpf => ebpf::lint(),
        Command::Demo(args) => demo::demo(&args),
        Command::Test(args) => match test::run(&args) {
            // The summary is already printed, and its counts must stay the last line.
            Ok(false) => return ExitCode::FAILURE,
            result => result.map(drop),
        },
        Command::Bench(args) => demo::bench(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Chaos(args) => demo::chaos(&args),
        Command::Image(args) => image::run(&args),
        Command::Dist(args) => dist::run(&args),
        Command::E2e(args) => match e2e::run(&args) {
            // No cluster, or a failed check: the message is already printed.
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Man => demo::man(),
        Command::Tidy => tidy::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
