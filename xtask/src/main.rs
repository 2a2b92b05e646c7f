//! `cargo xtask`: everything one does with this repository, from a clean clone to the demo.
//!
//! One file per subcommand. The commands that run something (`demo`, `test`, `bench`) call `setup`
//! and `build-ebpf` themselves, so that on a fresh machine nothing else has to be typed.

mod apt;
mod counts;
mod demo;
mod digest;
mod e2e;
mod ebpf;
mod image;
mod kubectl;
mod ldd;
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

/// Builds, tests and shows probe-handler.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what the eBPF build, the namespace suite and virtual machines need; does nothing twice
    Setup(setup::Args),
    /// Build the eBPF programs to target/ebpf/probe-handler.bpf.o
    BuildEbpf(ebpf::BuildArgs),
    /// Lint the eBPF crate with its own compiler, warnings denied
    LintEbpf,
    /// Show probes failing at the mesh and passing with probe-handler (as root)
    Demo(demo::DemoArgs),
    /// Run the repository's rules, the unit tests, as root the namespace suite, and that suite on other
    /// kernels in virtual machines
    Test(test::Args),
    /// Measure probes against direct connections (as root)
    Bench(demo::BenchArgs),
    /// Build the daemon's container image as an archive, without a container runtime
    Image(image::Args),
    /// Try the daemon in a cluster: real kubelet, STRICT pods, an upgrade (needs KUBECONFIG)
    E2e(e2e::Args),
    /// Check the repository's own rules only
    Tidy,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::all(&args),
        Command::BuildEbpf(args) => ebpf::build(&args),
        Command::LintEbpf => ebpf::lint(),
        Command::Demo(args) => demo::demo(&args),
        Command::Test(args) => match test::run(&args) {
            // Its summary has said it all, and its last line is to stay the last.
            Ok(false) => return ExitCode::FAILURE,
            result => result.map(drop),
        },
        Command::Bench(args) => demo::bench(&args),
        Command::Image(args) => image::run(&args),
        Command::E2e(args) => match e2e::run(&args) {
            // No cluster, or a failed check, which it has told already.
            Ok(code) => return code,
            Err(error) => Err(error),
        },
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
