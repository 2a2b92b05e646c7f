//! The kubelet's process.

use std::path::PathBuf;

use anyhow::Result;

use super::{Dialer, Probe, execute};
use crate::{cgroup, rpc};

/// Because of SO_LINGER, close() blocks its thread for up to a second if the pod has gone. With a single thread no other probe
/// could end meanwhile; in the kubelet only that probe waits.
const WORKERS: usize = 16;

/// Arguments of `testbed kubelet`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Cgroup to move into before anything else
    #[arg(long)]
    cgroup: Option<PathBuf>,
}

/// Makes probes until standard input ends.
///
/// # Errors
/// When the cgroup cannot be joined.
pub fn main(args: &Args) -> Result<()> {
    if let Some(path) = &args.cgroup {
        cgroup::join(path, 0)?;
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?
        .block_on(rpc::serve(&"ready", |probe: Probe| async move {
            execute(&probe, Dialer::default()).await
        }))
}
