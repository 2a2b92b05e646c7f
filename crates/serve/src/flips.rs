//! Reports verdicts of another kind than the previous one: a probe begins to fail, fails for another reason, or passes
//! again. Never blocks, and copies nothing if there is no receiver.

use std::sync::OnceLock;

use tokio::sync::mpsc;

use super::history::now_ms;
use super::table::StatusChange;
use model::{PodId, Probe};
use probe::verdict::Verdict;

/// One of them.
#[derive(Clone, Debug)]
pub struct Flip {
    /// The pod.
    pub pod: PodId,
    /// The probe.
    pub probe: Probe,
    /// Whether it passes now.
    pub passes: bool,
    /// The verdict.
    pub verdict: Verdict,
    /// Time of the verdict, in milliseconds since 1970.
    pub at_ms: u64,
}

/// Sends changes of verdicts to a receiver, if there is one.
#[derive(Debug, Default)]
pub struct Flips(OnceLock<mpsc::Sender<Flip>>);

impl Flips {
    /// Sends changes to `receiver` from now on; drops them while its queue is full.
    pub fn send_to(&self, receiver: mpsc::Sender<Flip>) {
        let _ = self.0.set(receiver);
    }

    /// Whether there is a receiver.
    pub fn are_wanted(&self) -> bool {
        self.0.get().is_some()
    }

    /// Sends the change that a verdict on `probe` makes, if any.
    pub(crate) fn send(&self, pod: &PodId, probe: &Probe, change: StatusChange, verdict: &Verdict) {
        let passes = match change {
            StatusChange::Fails => false,
            StatusChange::PassesAgain => true,
            StatusChange::StandsAside | StatusChange::None => return,
        };
        if let Some(receiver) = self.0.get() {
            let flip = Flip {
                pod: pod.clone(),
                probe: probe.clone(),
                passes,
                verdict: verdict.clone(),
                at_ms: now_ms(),
            };
            let _ = receiver.try_send(flip);
        }
    }
}
