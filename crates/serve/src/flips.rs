//! Verdicts that differ from the one before in kind: a probe begins to fail, fails for another reason, or passes again. They
//! are passed on without waiting; without a receiver nothing is copied.

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
    /// When it was, in milliseconds since 1970.
    pub at_ms: u64,
}

/// Where they are sent.
#[derive(Debug, Default)]
pub struct Flips(OnceLock<mpsc::Sender<Flip>>);

impl Flips {
    /// From now on they are sent to `receiver`; those that it has no room for are lost.
    pub fn send_to(&self, receiver: mpsc::Sender<Flip>) {
        let _ = self.0.set(receiver);
    }

    /// Whether there is a receiver.
    pub fn are_wanted(&self) -> bool {
        self.0.get().is_some()
    }

    /// Sends what a verdict on `probe` changes, if it does.
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
