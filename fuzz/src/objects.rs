//! Objects from the API server, and those that are admitted.

use std::sync::LazyLock;

use k8s_openapi::api::core::v1::Pod;
use pods::parse::parse_pod;
use pods::scope::Selection;
use serde_json::{Map, Value};
use webhook::reading::{Before, Reading};
use webhook::rewrite::{Admission, Rewriting, admit};

static REWRITING: LazyLock<Rewriting> = LazyLock::new(Rewriting::default);

/// `ISTIO_KUBE_APP_PROBERS`, and our own annotation.
pub fn probers(data: &[u8]) {
    if let Ok(json) = std::str::from_utf8(data) {
        let _ = pods::probers::parse(json, &[]);
    }
}

/// A Pod, as JSON.
pub fn pod(data: &[u8]) {
    if let Ok(pod) = serde_json::from_slice::<Pod>(data) {
        let _ = parse_pod(&pod).select(&Selection::default());
    }
}

fn apply(pod: &Value, admission: &Admission) -> Value {
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &admission.patch).expect("the patch applies");
    pod
}

/// Kubernetes treats an empty map of annotations like a missing one.
fn without_empty_annotations(mut pod: Value) -> Value {
    if let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut)
        && let Some(Value::Null | Value::Object(_)) = metadata.get("annotations")
        && metadata["annotations"]
            .as_object()
            .is_none_or(Map::is_empty)
    {
        metadata.remove("annotations");
    }
    pod
}

/// A Pod that is admitted: the result is a Pod, admitting it again changes nothing, and `revert` restores the original.
pub fn admission(data: &[u8]) {
    let Ok(pod) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    let admission = admit(&pod, &REWRITING);
    let rewritten = apply(&pod, &admission);
    assert_eq!(admit(&rewritten, &REWRITING).patch, [], "{rewritten}");
    let was_pod = serde_json::from_value::<Pod>(pod.clone()).is_ok();
    let is_pod = serde_json::from_value::<Pod>(rewritten.clone()).is_ok();
    assert!(is_pod || !was_pod, "no longer a Pod: {rewritten}");
    let is_original =
        Reading::new(&pod).is_ok_and(|reading| !matches!(reading.before, Before::Ours { .. }));
    if is_original && !admission.patch.is_empty() {
        let back = webhook::revert::revert(&rewritten);
        let [restored, pod] = [apply(&rewritten, &back), pod].map(without_empty_annotations);
        assert_eq!(restored, pod);
    }
}

/// An AdmissionReview. The answer is JSON.
pub fn review(data: &[u8]) {
    if let Ok(reviewed) = webhook::review::review(data, &REWRITING) {
        let answer = serde_json::from_slice::<Value>(&reviewed.json).expect("JSON");
        assert_eq!(answer["response"]["allowed"], true);
    }
}
