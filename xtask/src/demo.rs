//! `cargo xtask demo`, `chaos`, `bench` and `man`: build, then run a command of the testbed, the benchmarks or the daemon.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::envoy;
use crate::release::{Binaries, Heap, require_root};
use crate::shell::{cargo, display, exec, target_dir};

/// Options of `demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Keep everything running until ctrl-C, so that you can try commands
    #[arg(long)]
    keep: bool,
    /// Additional arguments for `testbed demo`
    #[arg(last = true)]
    rest: Vec<OsString>,
}

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Additional arguments for the program `bench`
    #[arg(last = true)]
    rest: Vec<OsString>,
}

/// Options of `chaos`.
#[derive(Debug, clap::Args)]
pub struct ChaosArgs {
    /// How long pods are probed
    #[arg(long, value_name = "N", default_value_t = 5)]
    minutes: u64,
    /// Repeat the schedule of the run with this seed [default: a new one, which is printed]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

/// Builds everything and makes a run of `testbed chaos`.
pub fn chaos(args: &ChaosArgs) -> Result<()> {
    require_root("chaos")?;
    let envoy = envoy::find_or_fetch();
    let mut command = Binaries::build(Heap::Jemalloc)?.testbed("chaos");
    match envoy {
        Ok(program) => drop(command.arg("--envoy").arg(program)),
        Err(error) => println!("chaos: without Envoy, with stand-ins for it only: {error:#}"),
    }
    command.arg("--minutes").arg(args.minutes.to_string());
    if let Some(seed) = args.seed {
        command.arg("--seed").arg(seed.to_string());
    }
    exec_replace(&mut command)
}

/// Builds everything and runs the demo.
pub fn demo(args: &DemoArgs) -> Result<()> {
    require_root("demo")?;
    let mut command = Binaries::build(Heap::Glibc)?.testbed("demo");
    if args.keep {
        command.arg("--keep");
    }
    exec_replace(command.args(&args.rest))
}

/// Builds everything and runs the benchmarks.
pub fn bench(args: &BenchArgs) -> Result<()> {
    require_root("bench")?;
    let mut command = Binaries::build_bench()?;
    exec_replace(command.args(&args.rest))
}

/// Builds the daemon and writes its manual pages to target/man.
pub fn man() -> Result<()> {
    let directory = target_dir().join("man");
    std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    exec(
        cargo()
            .args(["run", "--quiet", "--package", "probe-handler", "--", "man"])
            .arg(&directory),
    )?;
    println!("man: wrote manual pages to {}", directory.display());
    Ok(())
}

/// Replaces this process by the command. So its exit code is ours, and the shell prompt returns after
/// ctrl-C only when the command has cleaned up.
fn exec_replace(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run `{}`", display(command)))
}
