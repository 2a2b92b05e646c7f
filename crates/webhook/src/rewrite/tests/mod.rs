//! The rules of rewriting.

mod before;
mod pods;
mod probes;
mod properties;
mod skipped;
mod valid;

use serde_json::json;

use super::*;

/// A Pod with one container `web` that has a port `http` and `fields`.
fn web(fields: Value) -> Value {
    let mut container = json!({"name": "web", "ports": [{"name": "http", "containerPort": 8080}]});
    for (key, value) in fields.as_object().unwrap() {
        container[key] = value.clone();
    }
    json!({"metadata": {"name": "web-0"}, "spec": {"containers": [container]}})
}

/// `pod` with an annotation.
fn annotated(mut pod: Value, key: &str, value: &str) -> Value {
    pod["metadata"]["annotations"][key] = json!(value);
    pod
}

fn apply(pod: &Value, admission: &Admission) -> Value {
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &admission.patch).expect("the patch applies");
    pod
}

/// The Pod after admission, without a warning.
fn rewritten(pod: &Value) -> Value {
    let admission = admit(pod, &Rewriting::default());
    assert_eq!(admission.warnings, [""; 0], "{pod}");
    apply(pod, &admission)
}

/// The warnings for a Pod that is unchanged.
fn untouched(pod: &Value) -> Vec<String> {
    let admission = admit(pod, &Rewriting::default());
    assert_eq!(admission.patch, [], "{pod}");
    assert_eq!(admission.changed, 0, "{pod}");
    admission.warnings
}

/// The annotation with the originals.
fn originals(pod: &Value) -> Value {
    let json = pod["metadata"]["annotations"][PROBES].as_str().unwrap();
    serde_json::from_str(json).unwrap()
}
