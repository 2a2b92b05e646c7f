//! What became of Events, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// What became of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The API server has it.
    Sent,
    /// The pod had too many: it counts in the next one that is like it.
    Limited,
    /// Too many were waiting.
    Lost,
    /// The API server refused it.
    Refused,
}

impl Outcome {
    /// All.
    pub const ALL: [Self; 4] = [Self::Sent, Self::Limited, Self::Lost, Self::Refused];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Limited => "limited",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }
    }
}

/// How many Events had each outcome.
#[derive(Debug, Default)]
pub struct Outcomes([AtomicU64; Outcome::ALL.len()]);

impl Outcomes {
    /// Counts one.
    pub fn count(&self, outcome: Outcome) {
        let _ = self.0[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize].load(Ordering::Relaxed)
    }
}
