//! The result of canary dials, when they are repeated, and whether they prevent the handler from serving the
//! pod.

use std::time::Duration;

use super::pod_look::LO_DOWN;
use kernel::canary::Canary;
use reconcile::registry::Obstacle;

/// The result of a canary dial, or why none was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The result.
    pub canary: Canary,
    /// The processor time of the most expensive dial; `None` if no dial was made.
    pub cost: Option<Duration>,
    /// The cost of a dial, if it is too high: see [`Costs`](super::costs::Costs).
    pub too_much: Option<Duration>,
}

impl Trial {
    pub(super) fn unproven(why: &str) -> Self {
        Self {
            canary: Canary::Unproven(why.to_owned()),
            cost: None,
            too_much: None,
        }
    }

    /// Whether it means the same as `other`. The exact costs are ignored, because they always differ.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        self.canary == other.canary && self.too_much.is_some() == other.too_much.is_some()
    }
}

/// The combined result of the canaries of both address families.
pub(super) fn both(result: Canary, one: Canary) -> Canary {
    match (&result, &one) {
        (Canary::Captured { .. }, _) => result,
        (_, Canary::Captured { .. }) => one,
        (Canary::Passed, _) => result,
        (_, Canary::Passed) => one,
        (Canary::MeshSilent { .. }, _) => result,
        _ => one,
    }
}

/// Time until the canary is repeated: short while the mesh is still starting, and longer later. The canary is repeated
/// for as long as the pod exists, because its rules may change.
pub(super) fn until_next(last: &Trial, attempt: u32) -> Duration {
    match (last.too_much, &last.canary) {
        (Some(_), _) | (_, Canary::Captured { .. }) => Duration::from_secs(2),
        (_, Canary::Unproven(_) | Canary::MeshSilent { .. }) => {
            Duration::from_millis(100 << attempt.min(6))
        }
        (_, Canary::Passed) => Duration::from_secs(30),
    }
}

/// Why the handler must not serve a pod, given its state, the result of a canary dial and the previous
/// reason.
pub(super) fn obstacle(before: Option<&Obstacle>, lo_up: bool, trial: Trial) -> Option<Obstacle> {
    if !lo_up {
        return Some(Obstacle::LoDown(LO_DOWN.to_owned()));
    }
    match trial.too_much {
        Some(cost) => Some(Obstacle::Costly(format!(
            "its own netfilter rules cost {} ms of processor time per connection",
            cost.as_millis()
        ))),
        None => proven(before, trial.canary),
    }
}

/// Why the handler must not serve a pod, given the result of a canary dial and the previous reason.
fn proven(before: Option<&Obstacle>, canary: Canary) -> Option<Obstacle> {
    match (canary, before) {
        (Canary::Passed, _) => None,
        (Canary::Captured { port }, _) => Some(Obstacle::Captured(format!(
            "a dial from inside the pod to its port {port}, on which nothing listens, was accepted: a rule \
             of the mesh captures it"
        ))),
        // The dial proves nothing, so the previous result still applies.
        (Canary::Unproven(_) | Canary::MeshSilent { .. }, before) => before
            .filter(|before| matches!(before, Obstacle::Captured(_)))
            .cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unproven_canary_is_repeated_soon_and_then_less_often() {
        let unproven = Trial::unproven("");
        assert_eq!(until_next(&unproven, 0), Duration::from_millis(100));
        assert_eq!(until_next(&unproven, 100), Duration::from_millis(6_400));
        let captured = Trial {
            canary: Canary::Captured { port: 1 },
            ..unproven.clone()
        };
        assert_eq!(until_next(&captured, 9), Duration::from_secs(2));
        let costly = Trial {
            too_much: Some(Duration::from_millis(100)),
            canary: Canary::Passed,
            ..unproven
        };
        assert_eq!(until_next(&costly, 9), Duration::from_secs(2));
    }

    #[test]
    fn one_captured_family_is_enough_to_fail_and_else_one_that_passes_is_enough() {
        let unproven = || Canary::Unproven("no listener".to_owned());
        let captured = || Canary::Captured { port: 1 };
        assert_eq!(both(Canary::Passed, unproven()), Canary::Passed);
        assert_eq!(both(unproven(), Canary::Passed), Canary::Passed);
        assert_eq!(both(Canary::Passed, captured()), captured());
        assert_eq!(both(captured(), Canary::Passed), captured());
        assert_eq!(both(unproven(), unproven()), unproven());
        // Istio makes no rules for a pod's second address family, and Envoy does not listen in it.
        let silent = || Canary::MeshSilent { port: 15_006 };
        assert_eq!(both(Canary::Passed, silent()), Canary::Passed);
        assert_eq!(both(silent(), Canary::Passed), Canary::Passed);
        assert_eq!(both(captured(), silent()), captured());
        assert_eq!(both(silent(), unproven()), silent());
        assert_eq!(both(unproven(), silent()), silent());
    }

    #[test]
    fn a_captured_pod_is_not_served_until_a_canary_passes() {
        let unproven = || Canary::MeshSilent { port: 15_006 };
        let captured = proven(None, Canary::Captured { port: 65_535 });
        assert!(matches!(captured, Some(Obstacle::Captured(_))));
        // Inconclusive canaries in between do not change that.
        let once = proven(captured.as_ref(), unproven());
        let twice = proven(once.as_ref(), unproven());
        assert_eq!(twice, captured);
        assert_eq!(proven(twice.as_ref(), Canary::Passed), None);
    }

    #[test]
    fn a_pod_is_not_served_while_a_dial_costs_too_much_or_lo_is_down() {
        let trial = |too_much: Option<u64>| Trial {
            canary: Canary::Passed,
            cost: None,
            too_much: too_much.map(Duration::from_millis),
        };
        let costly = obstacle(None, true, trial(Some(120)));
        let Some(Obstacle::Costly(why)) = &costly else {
            panic!("{costly:?}");
        };
        assert!(why.contains("120 ms"), "{why}");
        let down = obstacle(costly.as_ref(), false, trial(Some(120)));
        assert!(matches!(down, Some(Obstacle::LoDown(_))), "{down:?}");
        for before in [costly, down] {
            assert_eq!(obstacle(before.as_ref(), true, trial(None)), None);
        }
    }

    #[test]
    fn a_pod_is_served_while_its_canary_is_unproven() {
        let missing = Obstacle::NoNamespace(String::new());
        let silent = Canary::MeshSilent { port: 15_006 };
        assert_eq!(proven(Some(&missing), silent), None);
    }
}
