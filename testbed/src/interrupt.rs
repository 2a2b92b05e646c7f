//! Handles ctrl-C and similar signals: an interrupted run returns an error at its next wait, so that
//! everything is removed as after any failure.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes SIGINT, SIGTERM and SIGHUP interrupt the run instead of ending the process. The signals are
/// caught, not blocked, because children would inherit the mask and miss their own SIGTERM.
///
/// # Errors
/// When the signals cannot be caught.
pub fn catch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("catching SIGHUP")?;
    drop(entered);
    let _waiting = thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                loop {
                    let _one = tokio::select! {
                        one = interrupt.recv() => one,
                        one = terminate.recv() => one,
                        one = hangup.recv() => one,
                    };
                    if INTERRUPTED.swap(true, Ordering::Relaxed) {
                        eprintln!("testbed: cleaning up, a moment more");
                    }
                }
            });
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
