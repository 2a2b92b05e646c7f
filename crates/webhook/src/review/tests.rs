//! Golden reviews in `golden/`, and bodies that are not reviews.

use json_patch::Patch;
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::*;

/// A review as an API server sends it, and the expected answer, with the patch as JSON instead of base64.
#[derive(Deserialize)]
struct Golden {
    review: Value,
    answer: Value,
    patch: Option<Value>,
    /// The Pod after the patch.
    pod: Option<Value>,
}

fn answer(body: &[u8]) -> (Outcome, Value) {
    let reviewed = review(body, &Rewriting::default()).expect("a review");
    let json = serde_json::from_slice(&reviewed.json).expect("JSON");
    (reviewed.outcome, json)
}

fn warnings(answer: &Value) -> Vec<&str> {
    let warnings = answer["response"]["warnings"].as_array();
    warnings
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Removes the patch from an answer and returns it.
fn take_patch(answer: &mut Value) -> Option<Value> {
    let patch = answer["response"].as_object_mut()?.remove("patch")?;
    let ByteString(bytes) = serde_json::from_value(patch).expect("base64");
    Some(serde_json::from_slice(&bytes).expect("JSON"))
}

fn check(golden: &str) {
    let golden: Golden = serde_json::from_str(golden).expect("golden");
    let (_, mut answer) = answer(golden.review.to_string().as_bytes());
    let patch = take_patch(&mut answer);
    assert_eq!(answer, golden.answer);
    assert_eq!(patch, golden.patch);
    let Some(patch) = patch else {
        assert!(golden.pod.is_none());
        return;
    };
    let patch: Patch = serde_json::from_value(patch).expect("a JSON patch");
    let mut pod = golden.review["request"]["object"].clone();
    json_patch::patch(&mut pod, &patch).expect("it can be applied");
    assert_eq!(Some(&pod), golden.pod.as_ref());
    // A reinvocation after other webhooks changes nothing more.
    let mut again = golden.review;
    again["request"]["object"] = pod;
    let (outcome, _) = self::answer(again.to_string().as_bytes());
    assert_eq!(outcome, Outcome::Unchanged);
}

#[test]
fn a_pod_with_each_kind_of_probe() {
    check(include_str!("golden/every-kind.json"));
}

#[test]
fn a_dry_run_is_answered_like_any_other_review() {
    check(include_str!("golden/dry-run.json"));
}

#[test]
fn a_pod_that_opts_out_is_unchanged() {
    check(include_str!("golden/opted-out.json"));
}

#[test]
fn a_pod_of_a_namespace_that_istio_ignores_is_unchanged() {
    let golden: Value = serde_json::from_str(include_str!("golden/every-kind.json")).unwrap();
    let mut review = golden["review"].clone();
    let object = review["request"]["object"]["metadata"].as_object_mut();
    drop(object.map(|metadata| metadata.remove("namespace")));
    for (namespace, outcome) in [
        ("shop", Outcome::Patched),
        ("kube-public", Outcome::Unchanged),
    ] {
        review["request"]["namespace"] = json!(namespace);
        assert_eq!(answer(review.to_string().as_bytes()).0, outcome);
    }
}

#[test]
fn objects_other_than_pods_are_not_read() {
    check(include_str!("golden/deployment.json"));
}

fn pod_review(object: &Value) -> Value {
    json!({
        "apiVersion": VERSION,
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "operation": "CREATE",
            "object": object,
        },
    })
}

fn probed() -> Value {
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-"},
        "spec": {"containers": [{"name": "web", "image": "web", "livenessProbe": probe}]},
    })
}

#[test]
fn only_pods_that_are_being_created_are_rewritten() {
    let review = |change: fn(&mut Value)| {
        let mut review = pod_review(&probed());
        change(&mut review["request"]);
        let (outcome, answer) = answer(review.to_string().as_bytes());
        assert_eq!(answer["response"]["allowed"], true);
        assert_eq!(answer["response"]["uid"], "u-1");
        assert!(warnings(&answer).is_empty());
        outcome
    };
    assert_eq!(review(|_| {}), Outcome::Patched);
    let others: [fn(&mut Value); 5] = [
        |request| request["operation"] = json!("UPDATE"),
        |request| request["operation"] = json!("CONNECT"),
        |request| request["subResource"] = json!("ephemeralcontainers"),
        |request| request["kind"]["kind"] = json!("PodTemplate"),
        |request| request["kind"]["group"] = json!("example.com"),
    ];
    for change in others {
        assert_eq!(review(change), Outcome::NotOurs);
    }
    let deletion = |request: &mut Value| {
        request["operation"] = json!("DELETE");
        request["object"] = Value::Null;
    };
    assert_eq!(review(deletion), Outcome::NotOurs);
}

#[test]
fn a_pod_that_cannot_be_read_is_admitted_with_a_warning() {
    for object in [
        Value::Null,
        json!("a Pod"),
        json!([]),
        json!({"spec": "none"}),
        json!({"spec": {"containers": {"a": 1}}}),
        json!({"metadata": 7, "spec": {"containers": [{"livenessProbe": {"httpGet": []}}]}}),
    ] {
        let (_, answer) = answer(pod_review(&object).to_string().as_bytes());
        assert_eq!(answer["response"]["allowed"], true, "{object}");
        assert_eq!(answer["response"]["patch"], Value::Null, "{object}");
        assert_eq!(warnings(&answer).len(), 1, "{object}: {answer}");
    }
}

/// A review with `text` as its object.
fn with_object(text: &str) -> String {
    let review = pod_review(&json!("OBJECT")).to_string();
    review.replace("\"OBJECT\"", text)
}

#[test]
fn nesting_of_any_depth_is_admitted_with_a_warning() {
    const DEPTH: usize = 1_000_000;
    let nested = ["[".repeat(DEPTH), "]".repeat(DEPTH)].concat();
    for object in [
        with_object(&nested),
        with_object(&format!(
            "{{\"metadata\":{{\"labels\":{}}}}}",
            &nested[DEPTH - 1000..DEPTH + 1000]
        )),
    ] {
        let (outcome, answer) = answer(object.as_bytes());
        assert_eq!(outcome, Outcome::NotUnderstood);
        assert_eq!(answer["response"]["allowed"], true);
        assert_eq!(warnings(&answer).len(), 1);
    }
    // In parts that are not read, nesting does not matter.
    let text = probed().to_string();
    let status = format!("{{\"status\":{nested},{}", &text[1..]);
    let (outcome, _) = answer(with_object(&status).as_bytes());
    assert_eq!(outcome, Outcome::Patched);
}

/// More values than are read from a Pod.
const MANY: usize = 100_000;

#[test]
fn an_object_that_needs_too_much_memory_is_not_read() {
    let many = format!("{{\"metadata\":{{\"labels\":[{}0]}}}}", "{},".repeat(MANY));
    let (outcome, answer) = answer(with_object(&many).as_bytes());
    assert_eq!(outcome, Outcome::NotUnderstood);
    assert!(warnings(&answer)[0].contains("more than 100000 values"));
    // A string is one value, whatever its content.
    let mut pod = probed();
    let text = "\\\",[{".repeat(MANY);
    pod["spec"]["containers"][0]["env"] = json!([{"name": "TEXT", "value": text}]);
    let (outcome, _) = self::answer(pod_review(&pod).to_string().as_bytes());
    assert_eq!(outcome, Outcome::Patched);
}

#[test]
fn a_review_of_another_version_is_allowed_in_that_version() {
    let mut review = pod_review(&probed());
    review["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let (outcome, answer) = answer(review.to_string().as_bytes());
    assert_eq!(outcome, Outcome::OtherVersion);
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1beta1");
    assert_eq!(answer["response"]["allowed"], true);
    assert_eq!(answer["response"]["patch"], Value::Null);
    assert!(warnings(&answer)[0].contains("admissionReviewVersions: [v1]"));
}

#[test]
fn a_body_that_is_not_a_review_is_refused() {
    for body in [
        "",
        "no JSON",
        "[]",
        "null",
        "{}",
        r#"{"apiVersion":"v1","kind":"Pod"}"#,
        r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#,
        r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}"#,
        r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":[]}"#,
        r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":7}}"#,
        r#"{"apiVersion":"apps/v1","kind":"AdmissionReview","request":{"uid":"u"}}"#,
        r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u"}} x"#,
    ] {
        assert!(
            review(body.as_bytes(), &Rewriting::default()).is_err(),
            "{body}"
        );
    }
    let no_text = [b"{\"kind\":\"\xff\xfe\"}".as_slice(), b"\x00", b"\xff"];
    for body in no_text {
        assert!(review(body, &Rewriting::default()).is_err(), "{body:?}");
    }
}

#[test]
fn warnings_fit_the_limits_of_the_api_server() {
    let long = shorten(vec!["é".repeat(500)]);
    assert!(long[0].len() <= WARNING_MAX && long[0].ends_with('…'));
    let many = shorten(vec!["w".to_owned(); 100]);
    assert_eq!(many.len(), WARNINGS_MAX);
    assert_eq!(
        many.last().map(String::as_str),
        Some("probe-handler: 89 more warnings")
    );
    assert!(many.iter().map(String::len).sum::<usize>() <= 4096);
}

proptest::proptest! {
    #[test]
    fn no_text_causes_a_panic(body in ".{0,200}") {
        let _ = review(body.as_bytes(), &Rewriting::default());
        let _ = review(with_object(&body).as_bytes(), &Rewriting::default());
    }
}
