//! How soon a pod's changes are followed.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How many changes of a pod's addresses are followed at once in a second.
const CHANGES: u32 = 16;

/// Keeps a pod that changes its addresses all the time from keeping us busy: the first changes of a second
/// are followed at once, more of them when it is over.
pub struct Pace {
    since: Instant,
    changes: u32,
}

impl Pace {
    /// For a pod that has changed nothing yet.
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
    async fn a_pod_that_changes_its_addresses_all_the_time_is_followed_at_a_pace() {
        let (mut pace, begun) = (Pace::new(), Instant::now());
        for _ in 0..CHANGES {
            pace.wait().await;
        }
        assert_eq!(
            begun.elapsed(),
            Duration::ZERO,
            "the first are followed at once"
        );
        for _ in 0..10 * CHANGES {
            pace.wait().await;
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        // One that has calmed down is followed at once again.
        tokio::time::advance(Duration::from_secs(5)).await;
        let calm = Instant::now();
        pace.wait().await;
        assert_eq!(calm.elapsed(), Duration::ZERO);
    }
}
