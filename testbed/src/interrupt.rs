//! Ctrl-C and friends: a run that is interrupted stops at its next wait with an error, so that
//! everything is removed on the way out as after any failure.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP interrupt the run instead of ending the process. To be
/// called first, before other threads exist; children are not affected.
///
/// # Errors
/// When the thread that waits for them cannot be made.
pub fn catch() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect();
    signals.thread_block().context("blocking signals")?;
    let _waiting = thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            while signals.wait().is_ok() {
                if INTERRUPTED.swap(true, Ordering::Relaxed) {
                    eprintln!("testbed: cleaning up, a moment more");
                }
            }
        })?;
    Ok(())
}

/// # Errors
/// Once the run has been interrupted.
pub fn check() -> Result<()> {
    if interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// Whether the run has been interrupted.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
