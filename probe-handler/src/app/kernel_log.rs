//! The log of the eBPF programs, by aya-log.

use anyhow::Context;
use tokio::io::unix::AsyncFd;

use crate::cli::config::AgentConfig;
use kernel::programs::Programs;

/// Reads the programs' log of each decision, if it is enabled or may be later.
///
/// # Errors
/// It can't be read.
pub fn read(programs: &mut Programs, config: &AgentConfig) -> anyhow::Result<()> {
    if !config.kernel_log && config.settings.is_none() {
        return Ok(());
    }
    let logger = programs.logger().context("cannot read the programs' log")?;
    // SAFETY: the logger keeps the ring buffer's descriptor open until it is dropped, and `AsyncFd` owns the
    // logger.
    let mut logger = unsafe { AsyncFd::register(logger) }
        .map_err(|error| anyhow::anyhow!("cannot watch the programs' log: {error}"))?;
    let _reader = tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}
