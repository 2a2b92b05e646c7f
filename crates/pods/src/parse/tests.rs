//! Whole Pods.

use serde_json::{Value, json};

use super::*;
use crate::scope::{HTTP, KUBEVIRT, MODE, Mode, Scope, Selection, VIRT_LAUNCHER};
use crate::select::SelectedPod;
use crate::skipped::SkipReason;
use model::HttpBy;

fn make(manifest: Value) -> SelectedPod {
    make_in(manifest, Selection::default())
}

fn make_in(manifest: Value, selection: Selection) -> SelectedPod {
    parse_pod(&serde_json::from_value(manifest).unwrap()).select(&selection)
}

/// A meshed pod with one probe.
fn meshed() -> Value {
    json!({
        "metadata": {"name": "web-0", "namespace": "shop", "uid": "0f1e"},
        "spec": {"containers": [
            {"name": "web", "livenessProbe": {"httpGet": {"port": 80}}},
            {"name": "istio-proxy"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.7",
            "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]}})
}

fn with(pointer: &str, value: Value) -> Value {
    let mut manifest = meshed();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    manifest.pointer_mut(parent).unwrap()[key] = value;
    manifest
}

#[test]
fn a_meshed_pod_is_served() {
    let parsed = make(meshed());
    assert_eq!(parsed.not_served, None);
    assert_eq!(parsed.warnings, Vec::<String>::new());
    let pod = parsed.pod.unwrap();
    assert_eq!(pod.id, parsed.id);
    assert_eq!(pod.id.to_string(), "shop/web-0");
    assert_eq!(pod.id.uid, "0f1e");
    assert_eq!(pod.mesh, Mesh::Istio);
    assert_eq!(pod.proxy_uid, None);
    assert_eq!(
        pod.ips,
        [
            "10.0.0.7".parse::<IpAddr>().unwrap(),
            "fd00::7".parse().unwrap()
        ]
    );
    assert_eq!(pod.probes.len(), 1);
}

#[test]
fn some_pods_are_never_served() {
    for (manifest, why) in [
        (
            with("/spec/hostNetwork", json!(true)),
            NotServed::HostNetwork,
        ),
        (with("/status/phase", json!("Succeeded")), NotServed::Ended),
        (with("/status/phase", json!("Failed")), NotServed::Ended),
        (with("/metadata/name", Value::Null), NotServed::NoName),
        (
            with("/spec/containers/0/livenessProbe", Value::Null),
            NotServed::NoProbes,
        ),
        (
            with("/spec/containers/1/name", json!("other")),
            NotServed::OutOfScope,
        ),
        (
            with("/metadata/labels", json!({MODE: "off"})),
            NotServed::Off,
        ),
        (
            with("/metadata/labels", json!({KUBEVIRT: VIRT_LAUNCHER})),
            NotServed::Guest,
        ),
    ] {
        let parsed = make(manifest.clone());
        assert_eq!(parsed.pod, None, "{manifest}");
        assert_eq!(parsed.not_served, Some(why), "{manifest}");
    }
}

#[test]
fn only_the_rewritten_probes_of_a_virtual_machine_are_served() {
    let pod = make(json!({
        "metadata": {"name": "vm", "labels": {KUBEVIRT: VIRT_LAUNCHER}, "annotations": {
            "probe-handler.io/probes": r#"{"/app-health/vm/livez":{"tcpSocket":{"port":80}}}"#}},
        "spec": {"containers": [{"name": "vm",
            "livenessProbe": {"httpGet": {"port": 15020, "path": "/app-health/vm/livez"}},
            "readinessProbe": {"tcpSocket": {"port": 80}}}]}}))
    .pod
    .unwrap();
    assert!(pod.rewritten.is_some());
    assert_eq!(pod.probes, []);
}

#[test]
fn a_virtual_machines_pod_is_served_with_the_label() {
    let manifest = with(
        "/metadata/labels",
        json!({KUBEVIRT: VIRT_LAUNCHER, MODE: "serve"}),
    );
    assert!(make(manifest).pod.is_some());
    let component = with("/metadata/labels", json!({KUBEVIRT: "virt-api"}));
    assert!(make(component).pod.is_some());
}

#[test]
fn a_pod_is_served_while_it_terminates() {
    // Readiness probes and preStop hooks continue until the containers stop.
    let manifest = with("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"));
    assert!(make(manifest).pod.is_some());
}

#[test]
fn a_pod_without_a_mesh_is_served_in_scope_all() {
    let all = Selection {
        scope: Scope::All,
        ..Selection::default()
    };
    let plain = with("/spec/containers/1/name", json!("other"));
    let pod = make_in(plain, all).pod.unwrap();
    assert_eq!(pod.mesh, Mesh::Unknown);
}

#[test]
fn an_annotation_sets_what_serves_http() {
    for (value, http, warnings) in [
        ("kernel", Some(HttpBy::Kernel), 0),
        ("handler", Some(HttpBy::Handler), 0),
        ("Kernel", None, 1),
    ] {
        let parsed = make(with("/metadata/annotations", json!({HTTP: value})));
        assert_eq!(parsed.pod.unwrap().http, http, "{value}");
        assert_eq!(parsed.warnings.len(), warnings, "{:?}", parsed.warnings);
    }
}

#[test]
fn an_annotation_in_place_of_the_label_is_ignored_with_a_warning() {
    let parsed = make(with("/metadata/annotations", json!({MODE: "off"})));
    assert!(parsed.pod.is_some());
    assert_eq!(
        parsed.warnings,
        ["probe-handler.io/mode is an annotation, must be a label; ignored"]
    );
}

#[test]
fn the_probes_of_an_observed_pod_are_not_served() {
    let observing = Selection {
        mode: Mode::Observe,
        ..Selection::default()
    };
    let parsed = make_in(meshed(), observing);
    assert_eq!(parsed.pod, None);
    assert_eq!(parsed.not_served, Some(NotServed::Observed));
    assert_eq!(parsed.observed, make(meshed()).pod);
    let own = make_in(with("/metadata/labels", json!({MODE: "serve"})), observing);
    assert!(own.pod.is_some() && own.observed.is_none());
}

#[test]
fn a_pod_rewritten_by_our_webhook_is_served_in_any_mode() {
    let rewritten = |mode: &str| {
        json!({
            "metadata": {"name": "web", "labels": {MODE: mode}, "annotations": {
                "probe-handler.io/probes": r#"{"/app-health/web/livez":{"tcpSocket":{"port":80}}}"#}},
            "spec": {"containers": [{"name": "web",
                "livenessProbe": {"httpGet": {"port": 15020, "path": "/app-health/web/livez"}},
                "readinessProbe": {"tcpSocket": {"port": 80}}}]}})
    };
    for (mode, native, observed) in [("serve", 1, 0), ("off", 0, 0), ("observe", 0, 1)] {
        let labeled = Selection {
            scope: Scope::Labeled,
            ..Selection::default()
        };
        let parsed = make_in(rewritten(mode), labeled);
        let pod = parsed.pod.unwrap();
        assert_eq!(pod.rewritten.as_ref().unwrap().mode, ProbeMode::Rewrite);
        assert_eq!(pod.probes.len(), native, "{mode}");
        let watched = parsed.observed.map_or(0, |pod| pod.probes.len());
        assert_eq!(watched, observed, "{mode}");
    }
}

#[test]
fn the_uid_is_the_one_that_the_kubelet_uses() {
    let mirror = json!({
        "kubernetes.io/config.hash": "5ba1", "kubernetes.io/config.mirror": "5ba1"});
    let id = make(with("/metadata/annotations", mirror)).id;
    assert_eq!(id.uid, "5ba1");
    // Without the annotation of a mirror pod, the hash is an arbitrary text of the pod's author.
    let forged = json!({"kubernetes.io/config.hash": "5ba1"});
    assert_eq!(make(with("/metadata/annotations", forged)).id.uid, "0f1e");
}

#[test]
fn a_pod_without_a_uid_gets_a_stable_one() {
    let id = make(with("/metadata/uid", Value::Null)).id;
    assert_eq!(id.uid, "manifest-47f31f3436d5dd21");
    let odd = make(with("/metadata/uid", json!("../../x")));
    assert_eq!(odd.id.uid, id.uid);
    assert_eq!(odd.warnings.len(), 1);
}

#[test]
fn the_default_namespace_is_default() {
    assert_eq!(
        make(with("/metadata/namespace", Value::Null))
            .id
            .to_string(),
        "default/web-0"
    );
}

#[test]
fn invalid_addresses_are_reported_and_the_others_kept() {
    let manifest = with(
        "/status/podIPs",
        json!([{"ip": "10.0.0"}, {"ip": "127.0.0.1"}, {"ip": "0.0.0.0"},
            {"ip": "::ffff:10.0.0.8"}, {"ip": ""}]),
    );
    let parsed = make(manifest);
    assert_eq!(parsed.warnings.len(), 3);
    assert_eq!(
        parsed.pod.unwrap().ips,
        ["10.0.0.7", "10.0.0.8"].map(|ip| ip.parse::<IpAddr>().unwrap())
    );
}

#[test]
fn a_pod_without_a_status_has_no_addresses_yet() {
    assert_eq!(
        make(with("/status", Value::Null)).pod.unwrap().ips,
        [] as [IpAddr; 0]
    );
}

#[test]
fn pods_of_consul_have_the_proxys_uid() {
    let pod = make(with("/spec/containers/1/name", json!("consul-dataplane")))
        .pod
        .unwrap();
    assert_eq!((pod.mesh, pod.proxy_uid), (Mesh::Consul, Some(5995)));
}

#[test]
fn skipped_probes_are_listed_beside_served_ones() {
    let parsed = make(with(
        "/spec/containers/0/readinessProbe",
        json!({"exec": {"command": ["true"]}}),
    ));
    assert!(parsed.pod.is_some());
    assert_eq!(parsed.skipped[0].why, SkipReason::Exec);
}

/// A pod with `count` containers, each with one probe of `path`.
fn crowded(count: usize, path: &str) -> SelectedPod {
    let container = |n: usize| json!({"name": format!("c{n}"), "livenessProbe": {"httpGet": {"port": n + 1, "path": path}}});
    let mut containers: Vec<_> = (0..count).map(container).collect();
    containers.push(json!({"name": "istio-proxy"}));
    make(with("/spec/containers", json!(containers)))
}

#[test]
fn probes_beyond_a_pods_quota_are_not_served() {
    for (count, path, served) in [
        (1_000, "/healthz", 1_000),
        (1_100, "/healthz", 1_000),
        (5, &format!("/{}", "p".repeat(14_999))[..], 4),
    ] {
        let parsed = crowded(count, path);
        let pod = parsed.pod.expect("served");
        assert_eq!(pod.probes.len(), served);
        assert_eq!(parsed.skipped.len(), count - served);
        assert!(
            parsed
                .skipped
                .iter()
                .all(|one| one.why == SkipReason::TooMany)
        );
    }
}

#[test]
fn the_list_of_skipped_probes_is_limited() {
    let container = |n: usize| json!({"name": format!("c{n}"), "livenessProbe": {"exec": {"command": ["true"]}}});
    let parsed = make(with(
        "/spec/containers",
        (0..5_000).map(container).collect(),
    ));
    assert_eq!(parsed.skipped.len(), 256);
    let expected = "4744 more of its probes are not served";
    assert!(
        parsed.warnings.iter().any(|warning| warning == expected),
        "{:?}",
        parsed.warnings
    );
}

#[test]
fn texts_kept_for_a_pod_have_a_bounded_length() {
    let odd = format!("/%zz{}", "x".repeat(1 << 20));
    let parsed = make(with(
        "/spec/containers/0/livenessProbe",
        json!({"httpGet": {"port": 80, "path": odd}}),
    ));
    let text = parsed.skipped[0].to_string();
    assert!(text.len() < 1_000, "{} bytes", text.len());
}
