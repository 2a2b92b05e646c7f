//! Reads a pod's status from the cluster: conditions, restarts, events.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use super::kubectl::Kubectl;

/// The last status of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodStatus {
    /// Its UID.
    pub uid: String,
    /// Whether container `app` is ready, by its readiness probe.
    pub ready: bool,
    /// Whether container `app` has started, by its startup probe.
    pub started: bool,
    /// How often container `app` was restarted.
    pub restarts: u64,
    /// `Running`, `Succeeded`, ...
    pub phase: String,
    /// When condition `Ready` changed last.
    pub ready_since: String,
    /// The exit code of container `app`, if it has ended.
    pub exit_code: Option<i64>,
    /// Its first address.
    pub ip: String,
}

/// All pods of a namespace, by name.
///
/// # Errors
/// What kubectl says.
pub fn pods(kubectl: &Kubectl, namespace: &str) -> Result<BTreeMap<String, PodStatus>> {
    let list = kubectl.get(&["pods", "-n", namespace])?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    Ok(items
        .iter()
        .map(|pod| (text(&pod["metadata"]["name"]), of(pod)))
        .collect())
}

/// The events of one pod as `reason: message`. Selected by UID, because events of an earlier pod with the same name may still
/// arrive.
///
/// # Errors
/// What kubectl says.
pub fn events(kubectl: &Kubectl, namespace: &str, uid: &str) -> Result<Vec<String>> {
    let selector = format!("involvedObject.uid={uid}");
    let list = kubectl.get(&["events", "-n", namespace, "--field-selector", &selector])?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    Ok(items
        .iter()
        .map(|event| format!("{}: {}", text(&event["reason"]), text(&event["message"])))
        .collect())
}

fn of(pod: &Value) -> PodStatus {
    let status = &pod["status"];
    let app = named(&status["containerStatuses"], "name", "app");
    let ready = named(&status["conditions"], "type", "Ready");
    PodStatus {
        uid: text(&pod["metadata"]["uid"]),
        ready: app["ready"].as_bool().unwrap_or_default(),
        started: app["started"].as_bool().unwrap_or_default(),
        restarts: app["restartCount"].as_u64().unwrap_or_default(),
        phase: text(&status["phase"]),
        ready_since: text(&ready["lastTransitionTime"]),
        exit_code: app["state"]["terminated"]["exitCode"].as_i64(),
        ip: text(&status["podIP"]),
    }
}

/// The list entry whose `key` is `name`; null if there is none.
fn named<'a>(list: &'a Value, key: &str, name: &str) -> &'a Value {
    let entries = list.as_array().map(Vec::as_slice).unwrap_or_default();
    entries
        .iter()
        .find(|entry| entry[key] == name)
        .unwrap_or(&Value::Null)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_status_is_that_of_the_app_container_not_the_sidecar() {
        let pod = json!({
            "metadata": {"name": "a", "uid": "u"},
            "status": {
                "phase": "Running",
                "podIP": "10.0.0.1",
                "conditions": [
                    {"type": "Initialized", "lastTransitionTime": "1"},
                    {"type": "Ready", "lastTransitionTime": "2"},
                ],
                "containerStatuses": [
                    {"name": "istio-proxy", "ready": false, "started": false, "restartCount": 9},
                    {"name": "app", "ready": true, "started": true, "restartCount": 3},
                ],
            },
        });
        let expected = PodStatus {
            uid: "u".to_owned(),
            ready: true,
            started: true,
            restarts: 3,
            phase: "Running".to_owned(),
            ready_since: "2".to_owned(),
            exit_code: None,
            ip: "10.0.0.1".to_owned(),
        };
        assert_eq!(of(&pod), expected);
    }

    #[test]
    fn a_pod_without_status_is_neither_ready_nor_started() {
        assert_eq!(
            of(&json!({"metadata": {"name": "a"}})),
            PodStatus::default()
        );
    }
}
