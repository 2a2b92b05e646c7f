//! Polls for a condition with a deadline, where there is no event to wait for.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{interrupt, pace};

const INTERVAL: Duration = Duration::from_millis(5);
/// The longest delay before an interruption is noticed.
const SLICE: Duration = Duration::from_millis(50);

/// Calls `check` every 5 ms until it returns a value.
///
/// # Errors
/// When `deadline` has passed without a value, or the run is interrupted; the message contains
/// `what`.
pub fn until<T>(what: &str, deadline: Duration, mut check: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = pace::stretch(deadline);
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = check() {
            return Ok(value);
        }
        interrupt::check()?;
        if Instant::now() >= end {
            bail!("{what}: not within {deadline:?}");
        }
        thread::park_timeout(INTERVAL);
    }
}

/// Waits for the full time. A thread that only parks can wake early from a pending wake-up, as channels
/// and joined threads leave them.
///
/// # Errors
/// When the run is interrupted.
pub fn pass(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        interrupt::check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::park_timeout(left.min(SLICE));
    }
}

/// Like [`until`], but continues after an interruption, for cleaning up. Returns whether the condition was
/// met.
pub fn to_clean_up(deadline: Duration, mut check: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + pace::stretch(deadline);
    while !check() {
        if Instant::now() >= end {
            return false;
        }
        thread::park_timeout(INTERVAL);
    }
    true
}
