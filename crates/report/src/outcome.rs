//! Outcomes of sending Events, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// The outcome of sending an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The API server stored it.
    Sent,
    /// The pod has reached its limit of Events: this one is added to the count of the next equal one.
    Limited,
    /// The queue was full.
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

/// The number of Events with each outcome.
#[derive(Debug, Default)]
pub struct Outcomes([AtomicU64; Outcome::ALL.len()]);

impl Outcomes {
    /// Counts one.
    pub fn count(&self, outcome: Outcome) {
        let _ = self.0[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The number of Events with this outcome.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize].load(Ordering::Relaxed)
    }
}
