//! `cargo xtask demo` and `cargo xtask bench`: what the testbed shows and measures, from nothing.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::release::{Binaries, require_root};
use crate::shell::display;

/// Options of `demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Leave everything up to play with
    #[arg(long)]
    keep: bool,
    /// Further arguments for `testbed demo`
    #[arg(last = true)]
    rest: Vec<OsString>,
}

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Further arguments for `testbed bench`
    #[arg(last = true)]
    rest: Vec<OsString>,
}

/// Builds and shows.
pub fn demo(args: &DemoArgs) -> Result<()> {
    require_root("demo")?;
    let mut command = Binaries::build()?.testbed("demo");
    if args.keep {
        command.arg("--keep");
    }
    become_it(command.args(&args.rest))
}

/// Builds and measures.
pub fn bench(args: &BenchArgs) -> Result<()> {
    require_root("bench")?;
    let mut command = Binaries::build()?.testbed("bench");
    become_it(command.args(&args.rest))
}

/// Turns this process into the command: its exit code is ours, and ctrl-C reaches it alone, so the
/// terminal is not back before it has cleaned up.
fn become_it(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run `{}`", display(command)))
}
