//! Waiting for a condition with a deadline, where nothing can be waited on directly.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{interrupt, pace};

const INTERVAL: Duration = Duration::from_millis(5);
/// How late an interruption may be seen.
const SLICE: Duration = Duration::from_millis(50);

/// Asks `check` every 5 ms until it gives a value.
///
/// # Errors
/// When `deadline` has passed without one, or the run is interrupted; `what` says what was waited
/// for.
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

/// Lets time pass: all of it. A thread that only parks goes on early where something before has left
/// it a wake-up, as channels and joined threads do.
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

/// As [`until`], but also where the run has been interrupted: for cleaning up. Tells whether the
/// condition came about.
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
