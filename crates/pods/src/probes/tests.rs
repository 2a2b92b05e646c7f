//! The kubelet's rules, with one table per rule.

use serde_json::{Value, json};

use super::*;

const POD_IP: &str = "10.0.0.7";

fn pod(manifest: Value) -> Pod {
    serde_json::from_value(manifest).unwrap()
}

/// The probes of a pod with a single container `web` made of `fields`.
fn web(fields: Value) -> (Vec<Probe>, Vec<SkippedProbe>) {
    let mut container = json!({"name": "web", "ports": [
        {"name": "http", "containerPort": 8080},
        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        {"name": "90", "containerPort": 9090}]});
    for (key, value) in fields.as_object().unwrap() {
        container[key] = value.clone();
    }
    probes(
        &pod(json!({"spec": {"containers": [container]}})),
        &[POD_IP.parse().unwrap()],
    )
}

fn only_action(fields: Value) -> Action {
    let (mut probes, skipped) = web(fields);
    assert_eq!(skipped, []);
    assert_eq!(probes.len(), 1);
    probes.remove(0).action
}

fn only_why(fields: Value) -> SkipReason {
    let (probes, mut skipped) = web(fields);
    assert_eq!(probes, []);
    assert_eq!(skipped.len(), 1);
    skipped.remove(0).why
}

fn http(scheme: Scheme, port: u16, target: &str) -> Action {
    Action::Http {
        scheme,
        port,
        target: target.to_owned(),
        headers: Vec::new(),
    }
}

#[test]
fn every_kind_of_probe_and_hook_is_found() {
    let get = json!({"httpGet": {"port": 80}});
    let (probes, skipped) = web(json!({
        "livenessProbe": get, "readinessProbe": get, "startupProbe": get,
        "lifecycle": {"postStart": get, "preStop": get}}));
    assert_eq!(skipped, []);
    assert_eq!(
        probes.iter().map(|p| p.kind).collect::<Vec<_>>(),
        [
            ProbeKind::Liveness,
            ProbeKind::Readiness,
            ProbeKind::Startup,
            ProbeKind::PostStart,
            ProbeKind::PreStop
        ]
    );
    for probe in probes {
        assert_eq!(probe.action, http(Scheme::Http, 80, "/"));
        assert_eq!(
            probe.timeout,
            (!probe.kind.is_hook()).then_some(DEFAULT_TIMEOUT)
        );
    }
}

#[test]
fn an_init_container_counts_only_if_it_keeps_running() {
    let container = |name: &str, policy: Value| {
        json!({"name": name, "restartPolicy": policy,
            "livenessProbe": {"tcpSocket": {"port": 1}}})
    };
    let (probes, _) = probes(
        &pod(json!({"spec": {
            "initContainers": [
                container("once", Value::Null),
                container("native", json!("Always"))],
            "containers": [container("web", Value::Null)]}})),
        &[],
    );
    let names: Vec<_> = probes.iter().map(|p| p.container.as_str()).collect();
    assert_eq!(names, ["native", "web"]);
}

#[test]
fn http_get_becomes_what_the_kubelet_sends() {
    for (get, action) in [
        (json!({"port": 80}), http(Scheme::Http, 80, "/")),
        (json!({"port": 80, "path": ""}), http(Scheme::Http, 80, "/")),
        (
            json!({"port": 80, "path": "healthz?x=1#y"}),
            http(Scheme::Http, 80, "/healthz?x=1"),
        ),
        (
            json!({"port": 443, "scheme": "HTTPS"}),
            http(Scheme::Https, 443, "/"),
        ),
        (
            json!({"port": 80, "scheme": "HTTP"}),
            http(Scheme::Http, 80, "/"),
        ),
        (
            json!({"port": 80, "host": POD_IP}),
            http(Scheme::Http, 80, "/"),
        ),
        (json!({"port": 80, "host": ""}), http(Scheme::Http, 80, "/")),
    ] {
        let fields = json!({"livenessProbe": {"httpGet": get}});
        assert_eq!(only_action(fields.clone()), action, "{fields}");
    }
}

#[test]
fn declared_headers_are_kept() {
    let action = only_action(
        json!({"readinessProbe": {"httpGet": {"port": 80, "httpHeaders": [
        {"name": "Host", "value": "app.example"}, {"name": "user-agent", "value": " ours "}]}}}),
    );
    assert_eq!(action.user_agent(), Some("ours"));
    let Action::Http { headers, .. } = action else {
        panic!("{action:?}");
    };
    assert_eq!(headers[0], ("Host".to_owned(), "app.example".to_owned()));
}

#[test]
fn a_request_above_the_limits_is_not_served() {
    let spec =
        |probe: Value| json!({"spec": {"containers": [{"name": "web", "livenessProbe": probe}]}});
    let header = |bytes: usize| json!({"name": "X", "value": "x".repeat(bytes)});
    for (get, fits) in [
        (
            json!({"port": 80, "path": format!("/{}", "p".repeat(15_000))}),
            true,
        ),
        (
            json!({"port": 80, "path": format!("/{}", "p".repeat(16_000))}),
            false,
        ),
        // Each space takes three bytes in the request.
        (
            json!({"port": 80, "path": format!("/{}", " ".repeat(6_000))}),
            false,
        ),
        (
            json!({"port": 80, "httpHeaders": [header(7_000), header(7_000)]}),
            true,
        ),
        (
            json!({"port": 80, "httpHeaders": [header(9_000), header(9_000)]}),
            false,
        ),
        (
            json!({"port": 80, "httpHeaders": vec![header(1); 250]}),
            true,
        ),
        (
            json!({"port": 80, "httpHeaders": vec![header(1); 260]}),
            false,
        ),
    ] {
        let pod = pod(spec(json!({"httpGet": get})));
        let (probes, skipped) = probes(&pod, &[]);
        assert_eq!(probes.len(), usize::from(fits));
        for one in &skipped {
            assert!(
                matches!(
                    one.why,
                    SkipReason::TooLong { .. } | SkipReason::TooManyHeaders(260)
                ),
                "{one}"
            );
        }
    }
    let grpc = json!({"grpc": {"port": 1, "service": "s".repeat(16_000)}});
    assert!(probes(&pod(spec(grpc)), &[]).0.is_empty());
}

#[test]
fn a_port_is_a_name_of_the_same_container_or_a_number() {
    for (port, number) in [
        (json!(1), 1),
        (json!(65535), 65535),
        (json!("http"), 8080),
        (json!("8081"), 8081),
        // A port name that looks like a number: the name takes precedence.
        (json!("90"), 9090),
    ] {
        let fields = json!({"livenessProbe": {"tcpSocket": {"port": port}}});
        assert_eq!(
            only_action(fields.clone()),
            Action::Tcp { port: number },
            "{fields}"
        );
    }
}

#[test]
fn a_probe_with_an_invalid_port_is_not_served() {
    for (port, text) in [
        (json!(0), "tcpSocket.port is 0, must be 1 to 65535"),
        (json!(-1), "tcpSocket.port is -1, must be 1 to 65535"),
        (json!(65536), "tcpSocket.port is 65536, must be 1 to 65535"),
        (json!("0"), "tcpSocket.port is 0, must be 1 to 65535"),
        (
            json!("metrics"),
            "tcpSocket.port \"metrics\" is neither a port name of this container nor a number",
        ),
        (
            json!(""),
            "tcpSocket.port \"\" is neither a port name of this container nor a number",
        ),
    ] {
        let why = only_why(json!({"livenessProbe": {"tcpSocket": {"port": port}}}));
        assert_eq!(why.to_string(), text);
        assert!(why.is_mistake());
    }
}

#[test]
fn a_port_name_of_another_container_is_not_used() {
    let (probes, skipped) = probes(
        &pod(json!({"spec": {"containers": [
            {"name": "a", "ports": [{"name": "http", "containerPort": 80}]},
            {"name": "b", "livenessProbe": {"httpGet": {"port": "http"}}}]}})),
        &[],
    );
    assert_eq!(probes, []);
    assert!(matches!(skipped[0].why, SkipReason::UnresolvedPort { .. }));
}

#[test]
fn a_probe_of_another_host_is_not_served() {
    for host in ["other.example", "127.0.0.1", "10.0.0.8"] {
        for (action, field) in [("httpGet", "httpGet.host"), ("tcpSocket", "tcpSocket.host")] {
            let why = only_why(json!({"livenessProbe": {action: {"port": 80, "host": host}}}));
            assert_eq!(
                why,
                SkipReason::ForeignHost {
                    field,
                    host: host.to_owned()
                }
            );
        }
    }
}

#[test]
fn grpc_has_an_optional_service() {
    for (grpc, service) in [
        (json!({"port": 9000}), ""),
        (json!({"port": 9000, "service": null}), ""),
        (json!({"port": 9000, "service": "db"}), "db"),
    ] {
        assert_eq!(
            only_action(json!({"readinessProbe": {"grpc": grpc}})),
            Action::Grpc {
                port: 9000,
                service: service.to_owned()
            }
        );
    }
    assert_eq!(
        only_why(json!({"readinessProbe": {"grpc": {"port": 65536}}})),
        SkipReason::PortOutOfRange {
            field: "grpc.port",
            port: 65536
        }
    );
}

#[test]
fn unsupported_actions_are_not_served() {
    let get = json!({"port": 80});
    for (fields, why) in [
        (
            json!({"livenessProbe": {"exec": {"command": ["true"]}}}),
            SkipReason::Exec,
        ),
        (
            json!({"lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}),
            SkipReason::Sleep,
        ),
        (
            json!({"lifecycle": {"preStop": {"tcpSocket": {"port": 80}}}}),
            SkipReason::TcpHook,
        ),
        (json!({"livenessProbe": {}}), SkipReason::Actions(0)),
        (
            json!({"livenessProbe": {"httpGet": get, "tcpSocket": get}}),
            SkipReason::Actions(2),
        ),
        (
            json!({"livenessProbe": {"httpGet": {"port": 80, "scheme": "https"}}}),
            SkipReason::UnknownScheme("https".to_owned()),
        ),
        (
            json!({"livenessProbe": {"httpGet": {"port": 80, "path": "http://x/y"}}}),
            SkipReason::OddPath("http://x/y".to_owned()),
        ),
    ] {
        assert_eq!(only_why(fields.clone()), why, "{fields}");
    }
}

#[test]
fn the_timeout_is_one_second_unless_positive() {
    for (seconds, timeout) in [
        (Value::Null, 1),
        (json!(0), 1),
        (json!(-3), 1),
        (json!(1), 1),
        (json!(30), 30),
    ] {
        let (probes, _) = web(json!({"livenessProbe":
            {"httpGet": {"port": 80}, "timeoutSeconds": seconds}}));
        assert_eq!(probes[0].timeout, Some(Duration::from_secs(timeout)));
    }
}

#[test]
fn probes_of_the_meshs_own_proxy_are_not_served() {
    let (probes, skipped) = probes(
        &pod(json!({"spec": {
            "initContainers": [{"name": "istio-proxy", "restartPolicy": "Always",
                "startupProbe": {"httpGet": {"port": 15021, "path": "/healthz/ready"}}}],
            "containers": [{"name": "web", "livenessProbe": {"tcpSocket": {"port": 80}}}]}})),
        &[],
    );
    assert_eq!(probes.len(), 1);
    assert_eq!(skipped.len(), 1);
    assert_eq!(skipped[0].why, SkipReason::MeshProxy);
    assert_eq!(
        skipped[0].to_string(),
        "container \"istio-proxy\", startupProbe: the container is the mesh's own proxy"
    );
}

#[test]
fn a_pod_without_a_spec_has_no_probes() {
    assert_eq!(probes(&Pod::default(), &[]), (vec![], vec![]));
}
