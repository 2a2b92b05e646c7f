//! The changes of a pod's state that its history keeps.

use pods::state::PodState;
use status_view::history::{PodChange, PodEvent};

/// The changes from the state `before` to `after`, which was seen at `now_ms`.
pub fn changes(before: &PodState, after: &PodState, now_ms: u64) -> Vec<PodEvent> {
    let mut events = Vec::new();
    for container in &after.containers {
        let mut known = before.containers.iter();
        let known = known.find(|known| known.name == container.name);
        // The count of a container without a status is not known yet.
        if known.is_none_or(|known| known.restarts >= container.restarts) {
            continue;
        }
        let ended = container.ended.as_ref();
        let at = container.started_ms.or(ended.and_then(|ended| ended.at_ms));
        events.push(PodEvent {
            at_ms: at.unwrap_or(now_ms),
            change: PodChange::Restarted {
                container: container.name.clone(),
                restarts: container.restarts,
                reason: ended.map(|ended| ended.reason.clone()).unwrap_or_default(),
                exit_code: ended.map(|ended| ended.exit_code),
            },
        });
    }
    if before.ready != after.ready
        && let Some(ready) = after.ready
    {
        // The first condition of a new pod is not a change.
        if ready || before.ready.is_some() {
            events.push(PodEvent {
                at_ms: after.ready_since_ms.unwrap_or(now_ms),
                change: if ready {
                    PodChange::Ready
                } else {
                    PodChange::Unready
                },
            });
        }
    }
    events.sort_by_key(|event| event.at_ms);
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use pods::state::{ContainerState, Ended};

    fn state(restarts: u32, ready: bool) -> PodState {
        PodState {
            ready: Some(ready),
            ready_since_ms: Some(7_000),
            containers: vec![ContainerState {
                name: "app".to_owned(),
                restarts,
                started_ms: (restarts > 0).then_some(5_000),
                ended: (restarts > 0).then(|| Ended {
                    reason: "Error".to_owned(),
                    exit_code: 137,
                    at_ms: Some(4_000),
                }),
            }],
        }
    }

    #[test]
    fn a_higher_count_is_a_restart_at_the_time_of_the_kubelet() {
        let events = changes(&state(0, true), &state(1, true), 9_000);
        let expected = PodEvent {
            at_ms: 5_000,
            change: PodChange::Restarted {
                container: "app".to_owned(),
                restarts: 1,
                reason: "Error".to_owned(),
                exit_code: Some(137),
            },
        };
        assert_eq!(events, [expected]);
        assert!(changes(&state(1, true), &state(1, true), 9_000).is_empty());
        assert!(changes(&PodState::default(), &state(1, false), 9_000).is_empty());
    }

    #[test]
    fn readiness_changes_when_its_condition_does() {
        let unready = changes(&state(0, true), &state(0, false), 9_000);
        assert_eq!(
            (unready[0].at_ms, &unready[0].change),
            (7_000, &PodChange::Unready)
        );
        let ready = changes(&PodState::default(), &state(0, true), 9_000);
        assert_eq!(ready[0].change, PodChange::Ready);
    }
}
