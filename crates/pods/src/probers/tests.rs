//! Probes rewritten by Istio or by our webhook, in manifests as the injectors write them.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::probes::probes;

fn recover_from(manifest: &Value) -> Recovered {
    let pod: Pod = serde_json::from_value(manifest.clone()).unwrap();
    let (declared, skipped) = probes(&pod, &[]);
    let mut recovered = recover(&pod, declared, &[]);
    recovered.skipped.extend(
        skipped
            .into_iter()
            .filter(|probe| probe.why != SkipReason::MeshProxy),
    );
    recovered
}

fn rewritten_get(path: &str, port: u16) -> Value {
    json!({"httpGet": {"path": path, "port": port, "scheme": "HTTP"}, "timeoutSeconds": 3})
}

/// A pod with container `hello`, as Istio's injector writes it.
fn istio(hello: Value, probers: &str, annotations: Value) -> Value {
    let mut container = json!({"name": "hello"});
    for (key, value) in hello.as_object().unwrap() {
        container[key] = value.clone();
    }
    json!({
        "metadata": {"annotations": annotations},
        "spec": {"containers": [
            {"name": "istio-proxy", "env": [{"name": ISTIO_PROBERS, "value": probers}],
                "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": 15021}}},
            container]}})
}

fn served(recovered: &Recovered) -> Vec<(String, Action)> {
    recovered
        .rewritten
        .iter()
        .flat_map(|rewritten| &rewritten.originals)
        .map(|(path, probe)| (path.clone(), probe.action.clone()))
        .collect()
}

const LIVEZ: &str = "/app-health/hello/livez";
const READYZ: &str = "/app-health/hello/readyz";

#[test]
fn a_path_names_container_and_kind() {
    for (path, parsed) in [
        (LIVEZ, Some(("hello", ProbeKind::Liveness))),
        (READYZ, Some(("hello", ProbeKind::Readiness))),
        ("/app-health/a/startupz", Some(("a", ProbeKind::Startup))),
        ("/app-lifecycle/a/prestopz", Some(("a", ProbeKind::PreStop))),
        (
            "/app-lifecycle/a/poststartz",
            Some(("a", ProbeKind::PostStart)),
        ),
        ("/app-health//livez", None),
        ("/app-health/a/b/livez", None),
        ("/app-health/a/livez/", None),
        ("/app-health/a/livez?x", None),
        ("/app-health/a/healthz", None),
        ("app-health/a/livez", None),
        ("/healthz/ready", None),
    ] {
        assert_eq!(parse_path(path), parsed, "{path}");
    }
}

#[test]
fn istios_rewritten_probes_are_taken_over() {
    let recovered = recover_from(&istio(
        json!({
            "livenessProbe": rewritten_get(LIVEZ, 15020),
            "readinessProbe": rewritten_get(READYZ, 15020),
            "startupProbe": {"tcpSocket": {"port": 7}}}),
        r#"{"/app-health/hello/livez":{"httpGet":{"path":"live","port":80,"scheme":"HTTP"},"timeoutSeconds":5},
            "/app-health/hello/readyz":{"grpc":{"port":3333,"service":null}}}"#,
        json!({}),
    ));
    assert_eq!(recovered.warnings, Vec::<String>::new());
    assert_eq!(recovered.skipped, []);
    // A probe that was not rewritten stays native; a rewritten one does not appear twice.
    assert_eq!(recovered.native.len(), 1);
    assert_eq!(recovered.native[0].action, Action::Tcp { port: 7 });
    let rewritten = recovered.rewritten.unwrap();
    assert_eq!(
        (rewritten.mode, rewritten.port),
        (ProbeMode::Takeover, 15020)
    );
    let (path, live) = &rewritten.originals[0];
    assert_eq!(path, LIVEZ);
    assert_eq!(
        (live.container.as_str(), live.kind),
        ("hello", ProbeKind::Liveness)
    );
    assert_eq!(live.timeout, Some(Duration::from_secs(5)));
    assert!(matches!(&live.action, Action::Http { target, port: 80, .. } if target == "/live"));
    let (path, ready) = &rewritten.originals[1];
    assert_eq!(path, READYZ);
    // The JSON does not set it, so the kubelet's timeout applies.
    assert_eq!(ready.timeout, Some(Duration::from_secs(3)));
    assert!(matches!(&ready.action, Action::Grpc { port: 3333, service } if service.is_empty()));
}

#[test]
fn what_pilot_agent_probes_at_localhost_is_taken_over_too() {
    for (value, localhost) in [("true", true), ("1", true), ("false", false), ("", false)] {
        let mut manifest = json!({"spec": {"containers": [
            {"name": "hello", "livenessProbe": rewritten_get(LIVEZ, 15020)},
            {"name": "istio-proxy", "env": [
                {"name": "ISTIO_KUBE_APP_PROBERS",
                 "value": r#"{"/app-health/hello/livez":{"httpGet":{"path":"/live","port":80}}}"#}]}]}});
        manifest["spec"]["containers"][1]["env"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", "value": value}));
        let recovered = recover_from(&manifest);
        assert!(recovered.rewritten.is_some(), "{value:?}");
        let pod = serde_json::from_value(manifest).unwrap();
        assert_eq!(is_at_localhost(&pod), localhost, "{value:?}");
    }
}

#[test]
fn the_env_is_found_in_a_native_sidecar() {
    let manifest = json!({"spec": {
        "initContainers": [{"name": "istio-proxy", "restartPolicy": "Always", "env": [
            {"name": ISTIO_PROBERS, "value": r#"{"/app-health/hello/livez":{"tcpSocket":{"port":"80"}}}"#}]}],
        "containers": [{"name": "hello", "livenessProbe": rewritten_get(LIVEZ, 15020)}]}});
    assert_eq!(
        served(&recover_from(&manifest)),
        [(LIVEZ.to_owned(), Action::Tcp { port: 80 })]
    );
}

#[test]
fn hooks_have_no_timeout_and_may_be_tcp() {
    let path = "/app-lifecycle/hello/prestopz";
    let recovered = recover_from(&istio(
        json!({"lifecycle": {"preStop": {"httpGet": {"path": path, "port": 15020}}}}),
        r#"{"/app-lifecycle/hello/prestopz":{"tcpSocket":{"port":93}}}"#,
        json!({}),
    ));
    let rewritten = recovered.rewritten.unwrap();
    let (_, hook) = &rewritten.originals[0];
    assert_eq!(hook.kind, ProbeKind::PreStop);
    assert_eq!(hook.action, Action::Tcp { port: 93 });
    assert_eq!(hook.timeout, None);
}

#[test]
fn the_status_port_is_the_annotation_else_the_port_of_the_probes() {
    let probers = r#"{"/app-health/hello/livez":{"tcpSocket":{"port":80}}}"#;
    for (annotations, spec_port, taken_over) in [
        (json!({}), 15020, true),
        (json!({}), 15999, true),
        (json!({ISTIO_STATUS_PORT: "15999"}), 15999, true),
        (json!({ISTIO_STATUS_PORT: "15999"}), 15020, false),
        (json!({ISTIO_STATUS_PORT: "0"}), 15020, false),
        (json!({ISTIO_STATUS_PORT: "nonsense"}), 15020, false),
        (json!({ISTIO_STATUS_PORT: "65536"}), 15020, false),
    ] {
        let manifest = istio(
            json!({"livenessProbe": rewritten_get(LIVEZ, spec_port)}),
            probers,
            annotations.clone(),
        );
        let recovered = recover_from(&manifest);
        let port = recovered.rewritten.map(|rewritten| rewritten.port);
        assert_eq!(port, taken_over.then_some(spec_port), "{annotations}");
        assert_eq!(recovered.native.is_empty(), taken_over, "{annotations}");
    }
}

#[test]
fn only_originals_that_the_spec_probes_are_served() {
    let probers = r#"{"/app-health/hello/livez":{"tcpSocket":{"port":80}},
        "/app-health/hello/readyz":{"tcpSocket":{"port":81}}}"#;
    let recovered = recover_from(&istio(
        json!({"livenessProbe": rewritten_get(LIVEZ, 15020)}),
        probers,
        json!({}),
    ));
    assert_eq!(
        served(&recovered),
        [(LIVEZ.to_owned(), Action::Tcp { port: 80 })]
    );
    let none = recover_from(&istio(json!({}), probers, json!({})));
    assert_eq!(none.rewritten, None);
}

#[test]
fn an_invalid_entry_is_reported_and_the_others_are_kept() {
    for entry in [
        r#"{}"#,
        r#"{"httpGet":{"port":1},"tcpSocket":{"port":1}}"#,
        r#"{"httpGet":{"port":"http"}}"#,
        r#"{"httpGet":{"port":0}}"#,
        r#"{"httpGet":{}}"#,
        r#"{"httpGet":{"port":80,"host":"elsewhere"}}"#,
        r#"{"tcpSocket":{"port":80,"host":"elsewhere"}}"#,
        r#"{"grpc":{"port":65536,"service":null}}"#,
        r#"{"exec":{"command":["true"]}}"#,
        r#"{"httpGet":7}"#,
        r#"7"#,
        r#"null"#,
    ] {
        let probers = format!(
            r#"{{"/app-health/hello/livez":{entry},
                "/app-health/hello/readyz":{{"tcpSocket":{{"port":81}}}}}}"#
        );
        let recovered = recover_from(&istio(
            json!({
                "livenessProbe": rewritten_get(LIVEZ, 15020),
                "readinessProbe": rewritten_get(READYZ, 15020)}),
            &probers,
            json!({}),
        ));
        assert_eq!(
            served(&recovered),
            [(READYZ.to_owned(), Action::Tcp { port: 81 })],
            "{entry}"
        );
        assert_eq!(recovered.native, [], "{entry}");
        assert_eq!(recovered.skipped.len(), 1, "{entry}");
        assert_eq!(recovered.skipped[0].kind, ProbeKind::Liveness, "{entry}");
    }
}

#[test]
fn a_rewritten_probe_without_an_original_is_not_served() {
    let recovered = recover_from(&istio(
        json!({
            "livenessProbe": rewritten_get(LIVEZ, 15020),
            "readinessProbe": rewritten_get(READYZ, 15020)}),
        r#"{"/app-health/hello/readyz":{"tcpSocket":{"port":81}},"/nonsense":{}}"#,
        json!({}),
    ));
    assert_eq!(recovered.native, []);
    assert_eq!(
        recovered.skipped[0].why.to_string(),
        "was rewritten to \"/app-health/hello/livez\" on port 15020, but its original is missing or unusable"
    );
    assert_eq!(
        recovered.warnings,
        ["originals of rewritten probes: \"/nonsense\" is not the path of a rewritten probe"]
    );
}

#[test]
fn malformed_json_is_a_warning() {
    for bad in ["", "{", "[]", "null", "\"x\""] {
        let recovered = recover_from(&istio(
            json!({"livenessProbe": rewritten_get(LIVEZ, 15020)}),
            bad,
            json!({}),
        ));
        assert_eq!(recovered.rewritten, None, "{bad}");
        assert_eq!(recovered.warnings.len(), 1, "{bad}");
        assert!(
            recovered.warnings[0]
                .starts_with("ISTIO_KUBE_APP_PROBERS is not a JSON object of probes: "),
            "{bad}"
        );
    }
}

#[test]
fn probes_that_our_webhook_rewrote_are_found_by_its_annotation() {
    let probes = r#"{"/app-health/hello/livez":{"httpGet":{"port":8443,"scheme":"HTTPS"}}}"#;
    let manifest = json!({
        "metadata": {"annotations": {PROBES: probes}},
        "spec": {"containers": [{"name": "hello",
            "livenessProbe": rewritten_get(LIVEZ, 19999),
            "readinessProbe": {"httpGet": {"port": 19999, "path": "/own"}}}]}});
    let recovered = recover_from(&manifest);
    let rewritten = recovered.rewritten.as_ref().unwrap();
    assert_eq!(
        (rewritten.mode, rewritten.port),
        (ProbeMode::Rewrite, 19999)
    );
    assert_eq!(rewritten.originals[0].1.action.protocol(), "https");
    // The rewrite port takes precedence over a native probe of the same port.
    assert_eq!(recovered.skipped[0].why, SkipReason::RewritePort(19999));
}

#[test]
fn nothing_is_taken_over_where_a_tcp_probe_would_always_pass() {
    let recovered = recover_from(&istio(
        json!({
            "livenessProbe": rewritten_get(LIVEZ, 15020),
            "readinessProbe": {"tcpSocket": {"port": 15020}}}),
        r#"{"/app-health/hello/livez":{"tcpSocket":{"port":80}}}"#,
        json!({}),
    ));
    assert_eq!(recovered.rewritten, None);
    assert_eq!(recovered.native.len(), 2);
    assert_eq!(recovered.warnings.len(), 1);
}

#[test]
fn our_annotation_takes_precedence_over_istios_variable() {
    let mut manifest = istio(
        json!({
            "livenessProbe": rewritten_get(LIVEZ, 19999),
            "readinessProbe": rewritten_get(READYZ, 15020)}),
        r#"{"/app-health/hello/readyz":{"tcpSocket":{"port":2}}}"#,
        json!({}),
    );
    manifest["metadata"]["annotations"] = json!({
        PROBES: r#"{"/app-health/hello/livez":{"tcpSocket":{"port":1}}}"#,
        ISTIO_STATUS_PORT: "15020"});
    let recovered = recover_from(&manifest);
    assert_eq!(
        served(&recovered),
        [(LIVEZ.to_owned(), Action::Tcp { port: 1 })]
    );
    assert_eq!(recovered.warnings.len(), 1);
    // Istio's rewritten probe keeps its port: pilot-agent answers, as without the daemon.
    assert_eq!(recovered.native.len(), 1);
}

#[test]
fn all_probes_of_a_pod_that_was_not_rewritten_are_native() {
    let recovered = recover_from(&json!({"spec": {"containers": [
        {"name": "hello", "livenessProbe": rewritten_get(LIVEZ, 15020)}]}}));
    assert_eq!(recovered.rewritten, None);
    assert_eq!(recovered.native.len(), 1);
}

#[test]
fn container_and_kind_are_those_of_the_spec_not_of_the_path() {
    let path = format!("/app-lifecycle/{}/prestopz", "x".repeat(10_000));
    let probers = json!({&path: {"httpGet": {"port": 80}}}).to_string();
    let hello = json!({"readinessProbe": rewritten_get(&path, 15020)});
    let recovered = recover_from(&istio(hello, &probers, json!({})));
    let originals = recovered.rewritten.expect("rewritten").originals;
    let [(_, probe)] = &originals[..] else {
        panic!("{originals:?}");
    };
    assert_eq!(probe.container, "hello");
    assert_eq!(probe.kind, ProbeKind::Readiness);
    assert_eq!(probe.timeout, Some(Duration::from_secs(3)), "as declared");
}
