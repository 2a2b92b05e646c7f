//! `probe-handler cleanup`: removes from the node what outlives the daemon.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use nix::sys::signal::{SigSet, Signal};

use super::config::{DEFAULT_BPFFS, bpffs};
use super::{EXIT_FAILURE, refuse};
use status_view::output;

/// Flags of `cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// The agent's --bpffs
    #[arg(
        long,
        value_name = "PATH",
        env = "PROBE_HANDLER_BPFFS",
        default_value = DEFAULT_BPFFS
    )]
    bpffs: String,

    /// Once everything is removed, wait for SIGTERM or SIGINT, as the container of a DaemonSet must
    #[arg(long)]
    stay: bool,
}

/// What was removed, and what could not be.
#[derive(Debug, Default)]
pub struct CleanedUp {
    /// Whether there were pins.
    pub pins: bool,
    /// Number of pods' network namespaces from which rules were removed.
    pub namespaces: usize,
    /// What could not be removed, and why.
    pub troubles: Vec<String>,
}

/// Calls `clean`, and prints what it removed. Returns exit code 1 if something could not be removed.
pub fn run(args: &CleanupArgs, clean: impl FnOnce(&Path) -> CleanedUp) -> ExitCode {
    let directory: PathBuf = match bpffs(&args.bpffs) {
        Ok(directory) => directory,
        Err(mistakes) => return refuse(&mistakes),
    };
    // A signal that arrives from now on ends the process once everything is removed.
    let signals = args.stay.then(block);
    let cleaned = clean(&directory);
    for trouble in &cleaned.troubles {
        let _ = writeln!(std::io::stderr().lock(), "probe-handler: {trouble}");
    }
    let printed = output::print(|out| {
        let pins = if cleaned.pins { "removed" } else { "none" };
        writeln!(
            out,
            "pins in {}: {pins}\nnetwork namespaces whose rules were removed: {}",
            directory.display(),
            cleaned.namespaces
        )
    });
    if !cleaned.troubles.is_empty() {
        return EXIT_FAILURE.into();
    }
    match signals.map(|signals| signals?.wait()) {
        Some(Err(error)) => output::fail(&format!("cannot wait for SIGTERM: {error}")),
        Some(Ok(_)) | None => printed,
    }
}

/// Blocks SIGTERM and SIGINT in this thread, the only one. The kernel would discard a signal that the first process of a
/// container neither blocks nor handles.
fn block() -> nix::Result<SigSet> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block()?;
    Ok(signals)
}
