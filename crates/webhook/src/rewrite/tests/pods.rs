//! Which pods and containers are rewritten.

use super::*;

fn probe() -> Value {
    json!({"tcpSocket": {"port": 80}})
}

/// The containers whose probe was rewritten.
fn rewritten_containers(pod: &Value) -> Vec<String> {
    let pod = rewritten(pod);
    let list = |name: &str| pod["spec"][name].as_array().cloned().unwrap_or_default();
    let mut containers = list("initContainers");
    containers.extend(list("containers"));
    containers
        .iter()
        .filter(|container| container["livenessProbe"]["httpGet"]["port"] == 15020)
        .map(|container| container["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn containers_that_keep_running_are_rewritten() {
    let container = |name: &str, policy: Value| json!({"name": name, "restartPolicy": policy, "livenessProbe": probe()});
    let pod = json!({"spec": {
        "initContainers": [
            container("once", json!(null)),
            container("native", json!("Always")),
            container("istio-proxy", json!("Always"))],
        "containers": [
            container("web", json!(null)),
            container("linkerd-proxy", json!(null)),
            container("other", json!(null))]}});
    assert_eq!(rewritten_containers(&pod), ["native", "web", "other"]);
}

#[test]
fn consuls_proxies_are_recognized_by_consuls_annotation() {
    let pod = annotated(
        json!({"metadata": {}, "spec": {"containers": [
            {"name": "web", "livenessProbe": probe()},
            {"name": "consul-dataplane-web", "livenessProbe": probe()}]}}),
        "consul.hashicorp.com/connect-inject-status",
        "injected",
    );
    assert_eq!(rewritten_containers(&pod), ["web"]);
}

#[test]
fn some_pods_are_not_handled() {
    for (field, value) in [
        ("hostNetwork", json!(true)),
        ("os", json!({"name": "windows"})),
        ("nodeSelector", json!({"kubernetes.io/os": "windows"})),
    ] {
        let mut pod = web(json!({"livenessProbe": probe()}));
        pod["spec"][field] = value;
        assert_eq!(untouched(&pod), [""; 0], "{field}");
    }
    for (field, value) in [
        ("hostNetwork", json!(false)),
        ("os", json!({"name": "linux"})),
        ("nodeSelector", json!({"kubernetes.io/os": "linux"})),
    ] {
        let mut pod = web(json!({"livenessProbe": probe()}));
        pod["spec"][field] = value;
        assert_eq!(rewritten_containers(&pod), ["web"], "{field}");
    }
    // The app runs in a virtual machine: the daemon serves it only with the label.
    let mut guest = web(json!({"livenessProbe": probe()}));
    guest["metadata"]["labels"] = json!({"kubevirt.io": "virt-launcher"});
    assert_eq!(untouched(&guest), [""; 0]);
    let mut asking = guest;
    asking["metadata"]["labels"]["probe-handler.io/mode"] = json!("serve");
    assert_eq!(rewritten_containers(&asking), ["web"]);
    // The author keeps the pod out of the mesh: its probes pass as they are.
    let declined = web(json!({"livenessProbe": probe()}));
    let declined = annotated(declined, "sidecar.istio.io/inject", "false");
    assert_eq!(untouched(&declined), [""; 0]);
    // The daemon would not serve its probes, and in mode observe nothing changes.
    for mode in ["off", "observe"] {
        let mut refused = web(json!({"livenessProbe": probe()}));
        refused["metadata"]["labels"] = json!({"probe-handler.io/mode": mode});
        assert_eq!(untouched(&refused), [""; 0], "{mode}");
    }
    // The kubelet runs the probes of the static pod's file, not those of its mirror pod.
    let mirror = annotated(
        web(json!({"livenessProbe": probe()})),
        "kubernetes.io/config.mirror",
        "5ba1",
    );
    assert_eq!(untouched(&mirror), [""; 0]);
}

#[test]
fn a_pod_that_names_no_namespace_is_in_that_of_its_request() {
    for (own, given, rewrites) in [
        (json!(null), Some("kube-system"), false),
        (json!(""), Some("kube-public"), false),
        (json!("shop"), Some("kube-system"), true),
        (json!("kube-system"), None, false),
        (json!(null), Some("shop"), true),
        (json!(null), None, true),
    ] {
        let mut pod = web(json!({"livenessProbe": probe()}));
        pod["metadata"]["namespace"] = own.clone();
        let admission = admit_in(given, &pod, &Rewriting::default());
        assert_eq!(admission.changed == 1, rewrites, "{own}, {given:?}");
    }
}

#[test]
fn a_pod_that_cannot_be_read_is_unchanged_with_a_warning() {
    for (pod, why) in [
        (json!(null), "invalid type: null, expected Pod"),
        (json!("x"), "invalid type: string \"x\", expected Pod"),
        (
            json!({"spec": {"containers": 7}}),
            "spec.containers: invalid type: integer `7`, expected a sequence",
        ),
        (
            json!({"spec": {"containers": [{"name": "a", "livenessProbe": {"tcpSocket": {"port": true}}}]}}),
            "spec.containers[0].livenessProbe.tcpSocket.port: invalid type: boolean `true`, expected IntOrString",
        ),
        (
            json!({"metadata": {"annotations": {"a": 1}}}),
            "metadata.annotations.a: invalid type: integer `1`, expected a string",
        ),
    ] {
        assert_eq!(
            untouched(&pod),
            [format!(
                "the Pod is unchanged because it can't be read: {why}"
            )]
        );
    }
    for nothing in [
        json!({}),
        json!({"spec": null}),
        json!({"spec": {"containers": []}}),
    ] {
        assert_eq!(untouched(&nothing), [""; 0]);
    }
}

#[test]
fn the_annotation_decides_for_its_pod_and_the_setting_for_the_others() {
    for (value, enabled, rewrites, warns) in [
        (None, true, true, false),
        (None, false, false, false),
        (Some("true"), false, true, false),
        (Some("T"), false, true, false),
        (Some("false"), true, false, false),
        (Some("0"), true, false, false),
        (Some("yes"), true, true, true),
        (Some("yes"), false, false, true),
        (Some(""), true, true, true),
    ] {
        let mut pod = web(json!({"livenessProbe": probe()}));
        if let Some(value) = value {
            pod = annotated(pod, REWRITE, value);
        }
        let rewriting = Rewriting {
            enabled,
            ..Rewriting::default()
        };
        let admission = admit(&pod, &rewriting);
        assert_eq!(admission.changed == 1, rewrites, "{value:?}, {enabled}");
        assert_eq!(
            admission.patch.is_empty(),
            !rewrites,
            "{value:?}, {enabled}"
        );
        assert_eq!(admission.warnings.len(), usize::from(warns), "{value:?}");
        if rewrites {
            let annotations = &apply(&pod, &admission)["metadata"]["annotations"];
            assert_eq!(
                annotations[REWRITE], "false",
                "Istio must not rewrite it again"
            );
            let before = value.map_or(json!(null), |value| json!(value));
            assert_eq!(annotations[REWRITE_BEFORE], before);
        }
    }
}

#[test]
fn a_pod_whose_annotations_would_become_too_large_is_unchanged() {
    let headers = json!([{"name": "X", "value": "x".repeat(200)}]);
    let long = web(json!({"livenessProbe": {"httpGet": {"port": 80, "httpHeaders": headers}}}));
    let pod = annotated(long, "big", &"x".repeat(annotations::LIMIT - 200));
    let warnings = untouched(&pod);
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].ends_with("bytes; at most 262144 are allowed"),
        "{warnings:?}"
    );
}

#[test]
fn a_pod_with_more_probes_than_the_daemon_serves_is_unchanged() {
    let path = format!("/{}", "p".repeat(14_000));
    let container = |n: usize| json!({"name": format!("c{n}"), "livenessProbe": {"httpGet": {"port": 80, "path": path}}});
    for (count, stays) in [(4, false), (5, true)] {
        let containers: Vec<_> = (0..count).map(container).collect();
        let pod = json!({"metadata": {"name": "web"}, "spec": {"containers": containers}});
        let admission = admit(&pod, &Rewriting::default());
        assert_eq!(
            admission.patch.is_empty(),
            stays,
            "{count}: {:?}",
            admission.warnings
        );
        assert_eq!(admission.warnings.len(), usize::from(stays));
    }
}

#[test]
fn a_mode_that_is_none_is_ignored_with_a_warning() {
    let mut pod = web(json!({"livenessProbe": {"tcpSocket": {"port": 1}}}));
    pod["metadata"]["labels"] = json!({"probe-handler.io/mode": "of"});
    let admission = admit(&pod, &Rewriting::default());
    assert_eq!(admission.changed, 1);
    assert_eq!(
        admission.warnings,
        [
            "label probe-handler.io/mode is \"of\", must be \"serve\", \"observe\" or \"off\"; ignored"
        ]
    );
}
