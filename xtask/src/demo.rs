//! `cargo xtask demo` and `cargo xtask bench`: build everything, then run the testbed's demo or the benchmarks.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::release::{Binaries, require_root};
use crate::shell::display;

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

/// Builds everything and runs the demo.
pub fn demo(args: &DemoArgs) -> Result<()> {
    require_root("demo")?;
    let mut command = Binaries::build()?.testbed("demo");
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

/// Replaces this process by the command. So its exit code is ours, and the shell prompt returns after
/// ctrl-C only when the command has cleaned up.
fn exec_replace(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run `{}`", display(command)))
}
