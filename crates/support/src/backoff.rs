//! Pauses between attempts: each pause doubles, with jitter so that nodes do not retry in lockstep.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Timeouts of lists and watches, and the pauses between attempts.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// First pause after a failure, before jitter.
    pub first: Duration,
    /// Longest pause, before jitter.
    pub longest: Duration,
    /// A watch that lasted this long resets the pause to `first`.
    pub steady: Duration,
    /// Maximum duration of a list, from the request to its last byte. The server's own limit is 60 s.
    pub list: Duration,
    /// Maximum time until the server answers a watch request.
    pub begin: Duration,
    /// Maximum time until the server has sent a watch's initial events.
    pub initial: Duration,
    /// Maximum time without any event. The server sends bookmarks about once a minute (kubernetes
    /// staging/src/k8s.io/apiserver/pkg/storage/cacher/cacher.go, bookmarkFrequency).
    pub silence: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            longest: Duration::from_secs(20),
            steady: Duration::from_secs(5),
            list: Duration::from_secs(60),
            begin: Duration::from_secs(15),
            initial: Duration::from_secs(10),
            silence: Duration::from_secs(90),
        }
    }
}

/// Exponential backoff with jitter.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
    random: u64,
}

impl Backoff {
    /// Uses `first` and `longest` of `timeouts`. Each process has its own random jitter.
    pub fn new(timeouts: &Timeouts) -> Self {
        Self::seeded(timeouts, RandomState::new().build_hasher().finish())
    }

    fn seeded(timeouts: &Timeouts, seed: u64) -> Self {
        Self {
            first: timeouts.first,
            longest: timeouts.longest,
            next: timeouts.first,
            random: seed,
        }
    }

    /// Resets the next pause to the first one, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next pause: a random duration between half of the nominal pause and all of it.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause.mul_f64(0.5 + self.chance() / 2.0)
    }

    /// A random number of seconds, at least `low` and less than twice `low`.
    pub fn seconds(&mut self, low: u32) -> u32 {
        low + (f64::from(low) * self.chance()) as u32
    }

    /// A random number from 0 to 1, by splitmix64.
    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_can_be_reset() {
        let timeouts = Timeouts {
            first: Duration::from_millis(100),
            longest: Duration::from_millis(400),
            ..Timeouts::default()
        };
        let mut backoff = Backoff::seeded(&timeouts, 1);
        for full in [100, 200, 400, 400, 400] {
            let pause = backoff.pause().as_millis();
            assert!((full / 2..=full).contains(&pause), "{pause} of {full}");
        }
        backoff.reset();
        assert!(backoff.pause() <= timeouts.first);
    }

    #[test]
    fn two_nodes_do_not_retry_in_lockstep() {
        let timeouts = Timeouts::default();
        let pauses = |seed| {
            let mut backoff = Backoff::seeded(&timeouts, seed);
            (0..5).map(|_| backoff.pause()).collect::<Vec<_>>()
        };
        assert_ne!(pauses(1), pauses(2));
    }
}
