//! The result of a check.

use std::time::Duration;

use serde::Serialize;

pub use model::result::{Outcome, Reason};

/// The result of one check.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Why the check ended as it did.
    pub reason: Reason,
    /// The status code for the kubelet, 100 to 999: the app's own if it answered, 500 if it could not be
    /// reached, 504 if it was too slow.
    pub status: u16,
    /// A text for people. Contains nothing from the body of the app's answer.
    pub detail: String,
    /// From accepting the kubelet's connection to the verdict; on the kernel path from the SYN;
    /// none if an eBPF program refused the connection.
    pub latency: Option<Duration>,
}

impl Verdict {
    /// How the kubelet judges it: a probe by its status, a lifecycle hook (`hook`) by whether the app was
    /// reached.
    pub fn outcome(&self, hook: bool) -> Outcome {
        match self.reason {
            // If the pod cannot be dialled, the connection is relayed: the kubelet gets another answer.
            Reason::Cancelled
            | Reason::Spliced
            | Reason::Connected
            | Reason::Dial
            | Reason::BodyIncomplete => Outcome::Unknown,
            reason if hook && reason.reached_app() => Outcome::Success,
            _ if hook => Outcome::Failure,
            _ if (200..400).contains(&self.status) => Outcome::Success,
            _ => Outcome::Failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(reason: Reason, status: u16) -> Verdict {
        Verdict {
            reason,
            status,
            detail: String::new(),
            latency: None,
        }
    }

    #[test]
    fn a_probe_passes_with_200_to_399_as_in_the_kubelet() {
        for (status, outcome) in [
            (199, Outcome::Failure),
            (200, Outcome::Success),
            (399, Outcome::Success),
            (400, Outcome::Failure),
            (599, Outcome::Failure),
        ] {
            assert_eq!(
                verdict(Reason::HttpStatus, status).outcome(false),
                outcome,
                "{status}"
            );
        }
    }

    #[test]
    fn a_hook_passes_with_any_status_and_fails_if_the_app_cannot_be_reached() {
        assert_eq!(
            verdict(Reason::HttpStatus, 500).outcome(true),
            Outcome::Success
        );
        assert_eq!(
            verdict(Reason::Refused, 500).outcome(true),
            Outcome::Failure
        );
    }
}
