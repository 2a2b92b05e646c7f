//! Limits how often changes of a pod's addresses are followed.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Number of changes per second that are followed immediately.
const CHANGES: u32 = 16;

/// Prevents a pod that changes its addresses continuously from using much processor time: the first changes of a second
/// are followed immediately, later ones when the second is over.
pub struct Pace {
    since: Instant,
    changes: u32,
}

impl Pace {
    /// For a pod without changes so far.
    pub fn new() -> Self {
        Self {
            since: Instant::now(),
            changes: 0,
        }
    }

    /// Waits until the next change may be followed.
    pub async fn wait(&mut self) {
        if self.changes >= CHANGES {
            sleep_until(self.since + Duration::from_secs(1)).await;
        }
        if self.since.elapsed() >= Duration::from_secs(1) {
            *self = Self::new();
        }
        self.changes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn continuous_changes_of_a_pods_addresses_are_followed_at_a_limited_rate() {
        let (mut pace, begun) = (Pace::new(), Instant::now());
        for _ in 0..CHANGES {
            pace.wait().await;
        }
        assert_eq!(
            begun.elapsed(),
            Duration::ZERO,
            "the first changes are followed immediately"
        );
        for _ in 0..10 * CHANGES {
            pace.wait().await;
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        // After a pause, changes are followed immediately again.
        tokio::time::advance(Duration::from_secs(5)).await;
        let calm = Instant::now();
        pace.wait().await;
        assert_eq!(calm.elapsed(), Duration::ZERO);
    }
}
