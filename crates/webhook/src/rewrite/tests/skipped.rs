//! Probes and hooks that are not rewritten.

use super::*;

#[test]
fn probes_that_the_mesh_does_not_affect_are_skipped_without_a_warning() {
    for fields in [
        json!({}),
        json!({"livenessProbe": {"exec": {"command": ["true"]}}}),
        json!({"lifecycle": {"preStop": {"exec": {"command": ["true"]}}}}),
        json!({"lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}),
        json!({"lifecycle": {"stopSignal": "SIGTERM"}}),
        json!({"livenessProbe": null, "lifecycle": null}),
    ] {
        assert_eq!(untouched(&web(fields)), [""; 0]);
    }
}

#[test]
fn probes_that_cannot_be_served_are_skipped_with_a_warning() {
    for (fields, why) in [
        (
            json!({"livenessProbe": {"httpGet": {"port": 80, "host": "10.0.0.7"}}}),
            "livenessProbe: httpGet.host is \"10.0.0.7\", which is not an address of the pod",
        ),
        (
            json!({"livenessProbe": {"tcpSocket": {"port": 80, "host": "db"}}}),
            "livenessProbe: tcpSocket.host is \"db\", which is not an address of the pod",
        ),
        (
            json!({"lifecycle": {"preStop": {"tcpSocket": {"port": 80, "host": "db"}}}}),
            "lifecycle.preStop: tcpSocket.host is \"db\", which is not an address of the pod",
        ),
        (
            json!({"readinessProbe": {"httpGet": {"port": "metrics"}}}),
            "readinessProbe: httpGet.port \"metrics\" is neither a port name of this container nor a number",
        ),
        (
            json!({"startupProbe": {"grpc": {"port": 0}}}),
            "startupProbe: grpc.port is 0, must be 1 to 65535",
        ),
        (
            json!({"livenessProbe": {"httpGet": {"port": 80, "path": "//x"}}}),
            "livenessProbe: httpGet.path \"//x\" has a scheme, a host, or spaces or non-ASCII characters in its query",
        ),
        (
            json!({"livenessProbe": {"httpGet": {"port": 80, "scheme": "ftp"}}}),
            "livenessProbe: httpGet.scheme is \"ftp\", must be HTTP or HTTPS",
        ),
        (
            json!({"livenessProbe": {}}),
            "livenessProbe: has 0 actions, must have exactly one",
        ),
        (
            json!({"livenessProbe": {"httpGet": {"port": 80}, "exec": {}}}),
            "livenessProbe: has 2 actions, must have exactly one",
        ),
        // gRPC over TLS, new in Kubernetes 1.37: the daemon would use plaintext.
        (
            json!({"livenessProbe": {"grpc": {"port": 80, "mode": "TLS"}}}),
            "livenessProbe: grpc.mode is an unknown field",
        ),
        (
            json!({"livenessProbe": {"httpGet": {"port": 80, "httpHeaders": [
                {"name": "a", "value": "b", "valueFrom": {}}]}}}),
            "livenessProbe: httpHeaders.valueFrom is an unknown field",
        ),
        (
            json!({"livenessProbe": {"httpGet": {"port": 80, "httpHeaders": [
                {"name": "host", "value": "shop:15020"}]}}}),
            "livenessProbe: its Host header names port 15020, the rewrite port",
        ),
    ] {
        assert_eq!(
            untouched(&web(fields)),
            [format!("container \"web\", {why}; unchanged")]
        );
    }
}

#[test]
fn other_probes_of_the_same_container_are_rewritten() {
    let pod = web(json!({
        "livenessProbe": {"httpGet": {"port": 80, "host": "elsewhere"}},
        "readinessProbe": {"exec": {"command": ["true"]}},
        "startupProbe": {"tcpSocket": {"port": 80}}}));
    let admission = admit(&pod, &Rewriting::default());
    assert_eq!((admission.changed, admission.warnings.len()), (1, 1));
    let after = apply(&pod, &admission);
    let container = |field: &str| {
        (
            &after["spec"]["containers"][0][field],
            &pod["spec"]["containers"][0][field],
        )
    };
    let (live, before) = container("livenessProbe");
    assert_eq!(live, before);
    let (ready, before) = container("readinessProbe");
    assert_eq!(ready, before);
    assert_eq!(container("startupProbe").0["httpGet"]["port"], 15020);
}

#[test]
fn a_container_whose_name_cannot_be_part_of_a_path_is_skipped() {
    for name in ["", "a/b", "a b", "ü", "a?b", "a%2f"] {
        let mut pod = web(json!({"livenessProbe": {"tcpSocket": {"port": 80}}}));
        pod["spec"]["containers"][0]["name"] = json!(name);
        assert_eq!(
            untouched(&pod),
            [format!(
                "container {name:?}, livenessProbe: the container's name can't be part of a path; unchanged"
            )]
        );
    }
}

#[test]
fn the_second_container_with_the_same_name_is_skipped() {
    let container = json!({"name": "web", "livenessProbe": {"tcpSocket": {"port": 80}}});
    let pod = json!({"spec": {"containers": [container, container]}});
    let admission = admit(&pod, &Rewriting::default());
    assert_eq!((admission.changed, admission.warnings.len()), (1, 1));
    assert_eq!(apply(&pod, &admission)["spec"]["containers"][1], container);
}

#[test]
fn a_pod_that_probes_the_rewrite_port_itself_is_unchanged() {
    // The daemon accepts every connection to that port, so a TCP probe would always pass.
    for action in [
        json!({"tcpSocket": {"port": 15020}}),
        json!({"httpGet": {"port": 15020, "path": "/healthz/ready"}}),
        json!({"grpc": {"port": 15020}}),
    ] {
        let pod = web(json!({
            "livenessProbe": {"tcpSocket": {"port": 80}}, "readinessProbe": action}));
        assert_eq!(
            untouched(&pod),
            [
                "the Pod is unchanged: container \"web\", readinessProbe: probes port 15020, the rewrite port"
            ]
        );
    }
}

#[test]
fn a_pod_with_a_probe_that_another_program_has_rewritten_is_unchanged() {
    for port in [15020, 8080] {
        let pod = web(json!({
            "readinessProbe": {"tcpSocket": {"port": 80}},
            "startupProbe": {"httpGet": {"port": port, "path": "/app-health/web/livez"}}}));
        assert_eq!(
            untouched(&pod),
            [
                "the Pod is unchanged: container \"web\", startupProbe: looks rewritten, but has no original"
            ]
        );
    }
}
