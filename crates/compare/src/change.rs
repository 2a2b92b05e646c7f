//! What serving a probe would change for the kubelet.

use std::fmt;

use serde::Serialize;

use model::{ProbeKind, Schedule};
use probe::verdict::Outcome;

/// What serving a probe would change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Nothing.
    None,
    /// The probe fails now, and would pass.
    Cured,
    /// The probe passes now, and would fail.
    Exposed,
    /// The change is not known: a check had no result, or the app changed during the comparison.
    Unclear,
}

impl Change {
    /// The change from the outcome `now` to the outcome `then`.
    pub const fn between(now: Outcome, then: Outcome) -> Self {
        match (now, then) {
            (Outcome::Success, Outcome::Success) | (Outcome::Failure, Outcome::Failure) => {
                Self::None
            }
            (Outcome::Failure, Outcome::Success) => Self::Cured,
            (Outcome::Success, Outcome::Failure) => Self::Exposed,
            (Outcome::Unknown, _) | (_, Outcome::Unknown) => Self::Unclear,
        }
    }

    /// Whether the kubelet would get another result.
    pub const fn is_change(self) -> bool {
        matches!(self, Self::Cured | Self::Exposed)
    }

    /// What the kubelet would do, if anything, about a probe of `kind` with `schedule`.
    pub fn consequence(self, kind: ProbeKind, schedule: Schedule) -> Option<Consequence> {
        let after = schedule.period * schedule.failure_threshold;
        match (self, kind) {
            (Self::None | Self::Unclear, _) | (_, ProbeKind::PostStart | ProbeKind::PreStop) => {
                None
            }
            (Self::Exposed, ProbeKind::Liveness) => Some(Consequence::Restarted(after)),
            (Self::Exposed, ProbeKind::Startup) => Some(Consequence::NotStarted(after)),
            (Self::Exposed, ProbeKind::Readiness) => Some(Consequence::NotReady(after)),
            (Self::Cured, ProbeKind::Liveness) => Some(Consequence::NoLongerRestarted),
            (Self::Cured, ProbeKind::Startup) => Some(Consequence::Started),
            (Self::Cured, ProbeKind::Readiness) => Some(Consequence::Ready),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Cured => "cured",
            Self::Exposed => "exposed",
            Self::Unclear => "unclear",
        })
    }
}

/// What the kubelet would do once the probe is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// It would restart the container, after this time.
    Restarted(std::time::Duration),
    /// The same, because the container never counts as started.
    NotStarted(std::time::Duration),
    /// The container would no longer be ready, after this time.
    NotReady(std::time::Duration),
    /// It would no longer restart the container.
    NoLongerRestarted,
    /// The container would count as started.
    Started,
    /// The container would be ready.
    Ready,
}

impl fmt::Display for Consequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restarted(after) => {
                write!(f, "would be restarted after {} s", after.as_secs())
            }
            Self::NotStarted(after) => write!(
                f,
                "would be restarted {} s after its next start",
                after.as_secs()
            ),
            Self::NotReady(after) => write!(
                f,
                "would be unready, and get no traffic, after {} s",
                after.as_secs()
            ),
            Self::NoLongerRestarted => f.write_str("would no longer be restarted"),
            Self::Started => f.write_str("would count as started"),
            Self::Ready => f.write_str("would be ready"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_change_needs_two_known_outcomes() {
        use Outcome::{Failure, Success, Unknown};
        for (now, then, change) in [
            (Success, Success, Change::None),
            (Failure, Failure, Change::None),
            (Failure, Success, Change::Cured),
            (Success, Failure, Change::Exposed),
            (Unknown, Failure, Change::Unclear),
            (Success, Unknown, Change::Unclear),
        ] {
            assert_eq!(Change::between(now, then), change, "{now:?} {then:?}");
        }
    }

    #[test]
    fn the_consequence_contains_the_time_that_the_thresholds_leave() {
        let schedule = Schedule {
            period: Duration::from_secs(10),
            failure_threshold: 3,
            success_threshold: 1,
        };
        for (change, kind, text) in [
            (
                Change::Exposed,
                ProbeKind::Liveness,
                "would be restarted after 30 s",
            ),
            (
                Change::Exposed,
                ProbeKind::Readiness,
                "would be unready, and get no traffic, after 30 s",
            ),
            (Change::Cured, ProbeKind::Readiness, "would be ready"),
        ] {
            let consequence = change.consequence(kind, schedule).expect("one");
            assert_eq!(consequence.to_string(), text);
        }
        assert_eq!(
            Change::None.consequence(ProbeKind::Liveness, schedule),
            None
        );
        assert_eq!(
            Change::Exposed.consequence(ProbeKind::PreStop, schedule),
            None
        );
    }
}
