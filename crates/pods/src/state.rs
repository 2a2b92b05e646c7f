//! What the kubelet has done with a pod, from the Pod's status: ready or not, and the restarts of its containers.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use model::bounds::truncated;
pub use model::state::{ContainerState, Ended, PodState};

/// The state in the status of `pod`.
pub fn state_of(pod: &Pod) -> PodState {
    let Some(status) = &pod.status else {
        return PodState::default();
    };
    let mut ready = status.conditions.iter().flatten();
    let ready = ready.rfind(|condition| condition.type_ == "Ready");
    let lists = [&status.init_container_statuses, &status.container_statuses];
    PodState {
        ready: ready.map(|ready| ready.status == "True"),
        ready_since_ms: ready.and_then(|ready| millis(ready.last_transition_time.as_ref())),
        containers: lists
            .into_iter()
            .flatten()
            .flatten()
            .map(container)
            .collect(),
    }
}

fn container(status: &ContainerStatus) -> ContainerState {
    let running = status
        .state
        .as_ref()
        .and_then(|state| state.running.as_ref());
    let now = status.state.as_ref();
    let ended = now.and_then(|state| state.terminated.as_ref());
    let before = status.last_state.as_ref();
    let ended = ended.or_else(|| before.and_then(|state| state.terminated.as_ref()));
    ContainerState {
        name: status.name.clone(),
        restarts: u32::try_from(status.restart_count).unwrap_or_default(),
        started_ms: running.and_then(|running| millis(running.started_at.as_ref())),
        ended: ended.map(|ended| Ended {
            reason: truncated(ended.reason.as_deref().unwrap_or_default()),
            exit_code: ended.exit_code,
            at_ms: millis(ended.finished_at.as_ref()),
        }),
    }
}

fn millis(time: Option<&Time>) -> Option<u64> {
    u64::try_from(time?.0.as_millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn restarts_and_readiness_are_read_from_the_status() {
        let pod: Pod = serde_json::from_value(json!({"status": {
            "conditions": [
                {"type": "Initialized", "status": "True"},
                {"type": "Ready", "status": "False", "lastTransitionTime": "2026-11-30T03:12:00Z"},
            ],
            "containerStatuses": [{
                "name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 2,
                "state": {"running": {"startedAt": "2026-11-30T03:12:40Z"}},
                "lastState": {"terminated": {
                    "exitCode": 137, "reason": "Error", "finishedAt": "2026-11-30T03:12:39Z",
                }},
            }],
        }}))
        .expect("a Pod");
        let state = state_of(&pod);
        let at = 1_796_008_360_000;
        assert_eq!(state.ready, Some(false));
        assert_eq!(state.ready_since_ms, Some(at - 40_000));
        let expected = ContainerState {
            name: "app".to_owned(),
            restarts: 2,
            started_ms: Some(at),
            ended: Some(Ended {
                reason: "Error".to_owned(),
                exit_code: 137,
                at_ms: Some(at - 1_000),
            }),
        };
        assert_eq!(state.containers, [expected]);
    }

    #[test]
    fn a_pod_without_status_has_no_state() {
        assert_eq!(state_of(&Pod::default()), PodState::default());
    }
}
