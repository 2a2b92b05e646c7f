//! Waiting for a condition with a deadline, where nothing can be waited on directly.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const INTERVAL: Duration = Duration::from_millis(5);

/// Asks `check` every 5 ms until it gives a value.
///
/// # Errors
/// When `deadline` has passed without one; `what` says what was waited for.
pub fn until<T>(what: &str, deadline: Duration, mut check: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = check() {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {deadline:?}");
        }
        thread::park_timeout(INTERVAL);
    }
}
