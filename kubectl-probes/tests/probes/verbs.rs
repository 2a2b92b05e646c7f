//! The other verbs: `explain`, `changes`, `advice`, `report` and `sysdump`.

use std::collections::BTreeMap;
use std::io::Read as _;

use super::cluster::{Answers, Cluster, NAMESPACE, err, out, recorded, status};
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use status_view::observed::{ComparedProbe, ObservedStatus};

const EXPLAIN: &str = include_str!("../recorded/explain.json");
const CONFIG: &str = include_str!("../recorded/config.json");
const METRICS: &str = include_str!("../recorded/metrics.txt");

fn observed(name: &str) -> ObservedStatus {
    ObservedStatus {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        trouble: None,
        probes: vec![ComparedProbe {
            container: "web".to_owned(),
            probe: "liveness".to_owned(),
            mode: "transparent".to_owned(),
            check: "tcp:5432".to_owned(),
            change: Some("exposed".to_owned()),
            consequence: Some("would be restarted after 30 s (refused)".to_owned()),
            now: None,
            then: None,
            age_ms: None,
            compared: 3,
            cured: 0,
            exposed: 3,
        }],
    }
}

/// A daemon that has one pod with a history, and no other one.
fn with_history() -> Answers {
    let mut answers = status(&recorded("one"));
    answers.insert(
        "/explain/testbed/shop".to_owned(),
        (200, EXPLAIN.as_bytes().to_vec()),
    );
    answers
}

fn without_pod() -> Answers {
    let text = "the daemon on this node has no pod testbed/shop: is it on another node?\n";
    BTreeMap::from([(
        "/explain/testbed/shop".to_owned(),
        (404, text.as_bytes().to_vec()),
    )])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_explained_by_the_daemon_that_has_it() {
    let cluster = Cluster::start().await;
    cluster.node("one", with_history()).await;
    cluster.node("two", without_pod()).await;
    let output = cluster.probes(&["explain", "testbed/shop"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let text = out(&output);
    assert!(
        text.starts_with("node one\npod testbed/shop, UID "),
        "{text}"
    );
    assert!(text.contains("web: liveness http:8080/healthy"), "{text}");
    let json = out(&cluster
        .probes(&["explain", "shop", "-n", "testbed", "-o", "json"])
        .await);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (&json[0]["node"], &json[0]["name"]),
        (&json!("one"), &json!("shop"))
    );
    assert!(json[0]["conclusion"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_no_daemon_has_is_a_failure_and_nodes_without_an_answer_are_named() {
    let cluster = Cluster::start().await;
    cluster.node("two", without_pod()).await;
    cluster.node("old", BTreeMap::new()).await;
    let output = cluster.probes(&["explain", "testbed/shop"]).await;
    assert_eq!(output.status.code(), Some(1));
    let text = err(&output);
    assert!(
        text.contains("no daemon that answered has a pod testbed/shop"),
        "{text}"
    );
    assert!(text.contains("too old to have a history"), "{text}");
    let output = cluster.probes(&["explain", "shop"]).await;
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_all_nodes_are_sorted_by_pod_with_one_summary() {
    let cluster = Cluster::start().await;
    for (node, pod) in [("one", "web-1"), ("two", "web-0")] {
        let mut state = recorded(node);
        state.observed = vec![observed(pod)];
        cluster.node(node, status(&state)).await;
    }
    let output = cluster.probes(&["changes"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(
        out(&output),
        "\
shop/web-0 on two
  web liveness tcp:5432 exposed: passes now and would fail; would be restarted after 30 s (refused) (3 of 3 comparisons)
shop/web-1 on one
  web liveness tcp:5432 exposed: passes now and would fail; would be restarted after 30 s (refused) (3 of 3 comparisons)
2 probes of 2 pods observed: 2 exposed, 0 cured
"
    );
    let output = cluster.probes(&["changes", "-n", "other"]).await;
    assert_eq!(
        (output.status.code(), out(&output)),
        (Some(0), String::new())
    );
    assert_eq!(err(&output), "no pod of namespace other is observed\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn advice_of_all_nodes_is_sorted_by_pod_and_old_daemons_are_named() {
    let cluster = Cluster::start().await;
    for (node, pod) in [("one", "web-1"), ("two", "web-0")] {
        let advice = json!([{
            "namespace": "shop", "pod": pod, "container": "web", "probe": "liveness",
            "about": "late", "text": "tcp:5432: late",
        }]);
        let advice = serde_json::to_vec(&advice).expect("JSON");
        let answers = BTreeMap::from([("/advice".to_owned(), (200, advice))]);
        cluster.node(node, answers).await;
    }
    cluster.node("old", BTreeMap::new()).await;
    let output = cluster.probes(&["advice"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(
        out(&output),
        "\
shop/web-0 on two
  web liveness tcp:5432: late
shop/web-1 on one
  web liveness tcp:5432: late
"
    );
    let note = err(&output);
    assert!(note.contains("too old to give advice"), "{note}");
    let json = out(&cluster
        .probes(&["advice", "shop/web-0", "-o", "json"])
        .await);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json[0]["node"], &json[1]), (&json!("two"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_is_one_file() {
    let cluster = Cluster::of_nodes(2).await;
    cluster.node_at("lost", None);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("report.html");
    let args = ["report", "--file", path.to_str().expect("a path")];
    let output = cluster.probes(&args).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(out(&output), format!("wrote {}\n", path.display()));
    let page = std::fs::read_to_string(&path).expect("the page");
    for expected in [
        "<svg",
        "2/3",
        "no answer: nothing listens on port",
        "testbed",
        "timeout 1 s",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
    let output = cluster.probes(&["report", "--file", "-"]).await;
    assert!(out(&output).starts_with("<!DOCTYPE html>"));
    let output = cluster
        .probes(&["report", "--file", "/nonexistent/x"])
        .await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains("cannot write /nonexistent/x"),
        "{}",
        err(&output)
    );
}

fn files(archive: &[u8]) -> BTreeMap<String, String> {
    let mut tar = tar::Archive::new(GzDecoder::new(archive));
    let entries = tar.entries().expect("entries").map(|entry| {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").display().to_string();
        let mut text = String::new();
        let _size = entry.read_to_string(&mut text).expect("text");
        (path, text)
    });
    entries.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sysdump_has_the_files_of_each_node_and_no_query_of_a_probe() {
    let cluster = Cluster::start().await;
    let mut state = recorded("one");
    state.pods[0].probes[0].target = Some("/health?token=secret".to_owned());
    let mut answers = status(&state);
    // A state of another version, which the plugin can't read.
    let mut other = serde_json::to_value(&state).expect("JSON");
    other["kubelet"] = json!("elsewhere");
    let body = other.to_string().into_bytes();
    cluster
        .node(
            "other",
            BTreeMap::from([("/status".to_owned(), (200, body))]),
        )
        .await;
    answers.insert(
        "/debug/config".to_owned(),
        (200, CONFIG.as_bytes().to_vec()),
    );
    answers.insert("/metrics".to_owned(), (200, METRICS.as_bytes().to_vec()));
    answers.insert("/readyz".to_owned(), (503, b"not ready\n".to_vec()));
    cluster.node("one", answers).await;
    cluster.node_at("lost", None);
    let log = "WARN GET /health?token=secret failed\n";
    cluster.server.log(NAMESPACE, "probe-handler-one", log);
    let output = cluster.probes(&["sysdump", "--file", "-"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let dumped = files(&output.stdout);
    let index: Value =
        serde_json::from_str(&dumped["probe-handler-sysdump/index.json"]).expect("JSON");
    assert_eq!(index["nodes"][1]["version"], json!(support::build::VERSION));
    let errors = index["nodes"].to_string();
    assert!(errors.contains("nothing listens on port 15026"), "{errors}");
    assert!(
        errors.contains("cannot get resource \\\"pods/log\\\""),
        "{errors}"
    );
    let one = |name: &str| &dumped[&format!("probe-handler-sysdump/nodes/one/{name}")];
    assert!(one("status.json").contains("/health?(removed)"));
    assert_eq!(one("config.json"), CONFIG);
    assert_eq!(one("metrics.txt"), METRICS);
    assert_eq!(one("readyz.txt"), "not ready\n");

    let rule = json!({"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]});
    cluster.server.allow(Some(NAMESPACE), &[rule]);
    let output = cluster.probes(&["sysdump", "--file", "-"]).await;
    let dumped = files(&output.stdout);
    let log = &dumped["probe-handler-sysdump/nodes/one/log.txt"];
    assert_eq!(log, "WARN GET /health?(removed) failed\n");
    for (name, text) in &dumped {
        assert!(
            !text.contains("secret") && !text.contains("token-of-the-user"),
            "{name}"
        );
    }
}
