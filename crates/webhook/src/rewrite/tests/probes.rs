//! All kinds of probes and hooks, with all their fields.

use super::*;

/// The field of the container, and the last word of the path.
const PROBES_AND_PATHS: [(&str, &str); 3] = [
    ("livenessProbe", "/app-health/web/livez"),
    ("readinessProbe", "/app-health/web/readyz"),
    ("startupProbe", "/app-health/web/startupz"),
];
const HOOKS_AND_PATHS: [(&str, &str); 2] = [
    ("postStart", "/app-lifecycle/web/poststartz"),
    ("preStop", "/app-lifecycle/web/prestopz"),
];

#[test]
fn every_probe_is_rewritten_and_its_original_kept() {
    let headers = json!([{"name": "Host", "value": "shop.example"}, {"name": "X", "value": "1"}]);
    for (field, path) in PROBES_AND_PATHS {
        for (action, rewritten_action, original) in [
            (
                json!({"httpGet": {"path": "/live?a=1", "port": 8080}}),
                json!({"path": path, "port": 15020}),
                json!({"httpGet": {"path": "/live?a=1", "port": 8080}}),
            ),
            (
                json!({"httpGet": {"port": "http", "scheme": "HTTP", "httpHeaders": headers}}),
                json!({"path": path, "port": 15020, "scheme": "HTTP", "httpHeaders": headers}),
                json!({"httpGet": {"port": 8080, "scheme": "HTTP", "httpHeaders": headers},
                    "declaredPort": "http"}),
            ),
            (
                json!({"httpGet": {"port": 8443, "scheme": "HTTPS", "path": "x"}}),
                json!({"path": path, "port": 15020, "scheme": "HTTP"}),
                json!({"httpGet": {"port": 8443, "scheme": "HTTPS", "path": "x"}}),
            ),
            (
                json!({"tcpSocket": {"port": "8081"}}),
                json!({"path": path, "port": 15020}),
                json!({"tcpSocket": {"port": 8081}, "declaredPort": "8081"}),
            ),
            (
                json!({"grpc": {"port": 9000}}),
                json!({"path": path, "port": 15020}),
                json!({"grpc": {"port": 9000}}),
            ),
            (
                json!({"grpc": {"port": 9000, "service": "db"}}),
                json!({"path": path, "port": 15020}),
                json!({"grpc": {"port": 9000, "service": "db"}}),
            ),
        ] {
            let pod = rewritten(&web(json!({field: action})));
            let container = &pod["spec"]["containers"][0];
            assert_eq!(
                container[field],
                json!({"httpGet": rewritten_action}),
                "{action}"
            );
            assert_eq!(originals(&pod), json!({path: original}), "{action}");
        }
    }
}

#[test]
fn every_hook_is_rewritten_and_its_original_kept() {
    for (field, path) in HOOKS_AND_PATHS {
        for action in [
            json!({"httpGet": {"path": "/bye", "port": 8080}}),
            json!({"httpGet": {"path": "/bye", "port": 8443, "scheme": "HTTPS"}}),
            json!({"tcpSocket": {"port": 8080}}),
        ] {
            let pod = rewritten(&web(json!({"lifecycle": {field: action}})));
            let hook = &pod["spec"]["containers"][0]["lifecycle"][field];
            assert_eq!(hook["httpGet"]["path"], path);
            assert_eq!(hook["httpGet"]["port"], 15020);
            assert_ne!(hook["httpGet"]["scheme"], "HTTPS");
            assert_eq!(hook.as_object().unwrap().len(), 1);
            assert_eq!(originals(&pod), json!({path: action}));
        }
    }
}

#[test]
fn every_other_field_is_kept() {
    let timing = json!({"initialDelaySeconds": 1, "timeoutSeconds": 2, "periodSeconds": 3,
        "successThreshold": 1, "failureThreshold": 5, "terminationGracePeriodSeconds": 6,
        "aFieldOfTomorrow": {"a": [1]}});
    let mut probe = timing.clone();
    probe["tcpSocket"] = json!({"port": 1});
    let mut pod = web(json!({"livenessProbe": probe, "resizePolicy": [], "tomorrow": true}));
    pod["spec"]["tomorrow"] = json!({"x": 1});
    let pod = rewritten(&pod);
    let mut expected = timing;
    expected["httpGet"] = json!({"path": "/app-health/web/livez", "port": 15020});
    assert_eq!(pod["spec"]["containers"][0]["livenessProbe"], expected);
    assert_eq!(pod["spec"]["containers"][0]["tomorrow"], true);
    assert_eq!(pod["spec"]["tomorrow"], json!({"x": 1}));
    // The daemon times out before the kubelet.
    assert_eq!(
        originals(&pod)["/app-health/web/livez"]["timeoutSeconds"],
        2
    );
}

#[test]
fn the_patch_contains_only_changes() {
    let pod = annotated(
        web(
            json!({"livenessProbe": {"httpGet": {"path": "/", "port": 80, "httpHeaders": [
            {"name": "A", "value": "b"}]}, "periodSeconds": 3}}),
        ),
        "a/b",
        "c",
    );
    let patch = serde_json::to_value(admit(&pod, &Rewriting::default()).patch).unwrap();
    let paths: Vec<_> = patch
        .as_array()
        .unwrap()
        .iter()
        .map(|operation| {
            (
                operation["op"].as_str().unwrap(),
                operation["path"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        paths,
        [
            ("replace", "/spec/containers/0/livenessProbe/httpGet/path"),
            ("replace", "/spec/containers/0/livenessProbe/httpGet/port"),
            ("add", "/metadata/annotations/probe-handler.io~1probes"),
            (
                "add",
                "/metadata/annotations/sidecar.istio.io~1rewriteAppHTTPProbers"
            ),
        ]
    );
}

#[test]
fn port_and_prefix_are_configurable() {
    let pod = web(json!({"livenessProbe": {"tcpSocket": {"port": 80}}}));
    let rewriting = Rewriting {
        port: NonZeroU16::new(19999).unwrap(),
        prefix: "/ph".parse().unwrap(),
        ..Rewriting::default()
    };
    let pod = apply(&pod, &admit(&pod, &rewriting));
    assert_eq!(
        pod["spec"]["containers"][0]["livenessProbe"]["httpGet"],
        json!({"path": "/ph/app-health/web/livez", "port": 19999})
    );
    assert_eq!(
        originals(&pod),
        json!({"/ph/app-health/web/livez": {"tcpSocket": {"port": 80}}})
    );
}

#[test]
fn a_pod_need_not_have_metadata() {
    for metadata in [
        json!(null),
        json!({}),
        json!({"annotations": null}),
        json!({"annotations": {}}),
    ] {
        let mut pod = web(json!({"livenessProbe": {"tcpSocket": {"port": 80}}}));
        pod["metadata"] = metadata;
        assert_eq!(rewritten(&pod)["metadata"]["annotations"][REWRITE], "false");
        pod.as_object_mut().unwrap().remove("metadata");
        assert_eq!(rewritten(&pod)["metadata"]["annotations"][REWRITE], "false");
    }
}
