//! Pods that were rewritten before.

use super::*;
use crate::revert::revert;

fn two_probes() -> Value {
    web(json!({"livenessProbe": {"tcpSocket": {"port": 80}},
        "lifecycle": {"preStop": {"httpGet": {"port": "http"}}}}))
}

fn later(mut pod: Value) -> Value {
    let late = json!({"name": "late", "readinessProbe": {"grpc": {"port": 9}}});
    pod["spec"]["containers"].as_array_mut().unwrap().push(late);
    pod
}

#[test]
fn a_pod_that_our_webhook_has_rewritten_is_unchanged() {
    for value in [None, Some("true"), Some("nonsense")] {
        let mut pod = two_probes();
        if let Some(value) = value {
            pod = annotated(pod, REWRITE, value);
        }
        let once = apply(&pod, &admit(&pod, &Rewriting::default()));
        let again = admit(&once, &Rewriting::default());
        assert_eq!(again.patch, []);
        assert_eq!(again.warnings.is_empty(), value != Some("nonsense"));
    }
}

#[test]
fn a_container_added_since_is_rewritten_too() {
    let pod = later(rewritten(&two_probes()));
    let pod = rewritten(&pod);
    assert_eq!(pod["metadata"]["annotations"][REWRITE], "false");
    let paths: Vec<_> = originals(&pod)
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(
        paths,
        [
            "/app-health/late/readyz",
            "/app-health/web/livez",
            "/app-lifecycle/web/prestopz"
        ]
    );
    // The result is the same as if the container had existed from the beginning.
    assert_eq!(pod, rewritten(&later(two_probes())));
}

#[test]
fn an_added_container_gets_the_rewrite_port_of_its_pod() {
    let pod = later(rewritten(&two_probes()));
    let other = Rewriting {
        port: NonZeroU16::new(19999).unwrap(),
        ..Rewriting::default()
    };
    assert_eq!(apply(&pod, &admit(&pod, &other)), rewritten(&pod));
    // A probe of this port is rewritten too, because it would always pass otherwise.
    let mut pod = rewritten(&two_probes());
    let clash = json!({"name": "late", "readinessProbe": {"tcpSocket": {"port": 15020}}});
    pod["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(clash);
    assert_eq!(
        originals(&rewritten(&pod))["/app-health/late/readyz"],
        json!({"tcpSocket": {"port": 15020}})
    );
}

#[test]
fn a_path_that_another_probe_uses_is_not_used_again() {
    let mut pod = rewritten(&two_probes());
    let late = json!({"name": "late", "livenessProbe": {"tcpSocket": {"port": 1}},
        "readinessProbe": {"httpGet": {"port": 8080, "path": "/app-health/late/livez"}}});
    pod["spec"]["containers"].as_array_mut().unwrap().push(late);
    assert_eq!(
        untouched(&pod),
        [
            "container \"late\", livenessProbe: another probe already uses /app-health/late/livez; unchanged"
        ]
    );
}

#[test]
fn the_false_that_our_webhook_has_set_is_not_the_pods_own_value() {
    let off = Rewriting {
        enabled: false,
        ..Rewriting::default()
    };
    // The pod had no annotation, so the setting applies, which is off by now.
    let silent = later(rewritten(&two_probes()));
    assert_eq!(admit(&silent, &off), Admission::default());
    // The pod's own value was true.
    let willing = annotated(two_probes(), REWRITE, "true");
    let willing = later(apply(&willing, &admit(&willing, &off)));
    assert_eq!(admit(&willing, &off).changed, 1);
}

#[test]
fn the_annotation_that_stops_istio_is_set_again() {
    let pod = annotated(rewritten(&two_probes()), REWRITE, "true");
    let pod = rewritten(&pod);
    assert_eq!(pod["metadata"]["annotations"][REWRITE], "false");
    assert_eq!(pod["metadata"]["annotations"][REWRITE_BEFORE], "true");
}

#[test]
fn a_pod_that_istio_has_rewritten_is_unchanged() {
    let probers = r#"{"/app-health/web/livez":{"tcpSocket":{"port":80}}}"#;
    let mut pod = web(json!({"livenessProbe":
        {"httpGet": {"path": "/app-health/web/livez", "port": 15020, "scheme": "HTTP"}}}));
    let proxy = json!({"name": "istio-proxy",
        "env": [{"name": "ISTIO_KUBE_APP_PROBERS", "value": probers}],
        "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": 15021}}});
    pod["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(proxy);
    assert_eq!(untouched(&pod), [""; 0]);
    assert_eq!(
        untouched(&later(pod)),
        [
            "1 probes and hooks are unchanged because Istio's injector has rewritten others of this Pod"
        ]
    );
}

#[test]
fn a_foreign_annotation_is_not_lost() {
    for value in [
        "",
        "nonsense",
        "[]",
        "{}",
        "null",
        r#"{"/app-health/web/livez":{"tcpSocket":{"port":81}}}"#,
        r#"{"a":1}"#,
    ] {
        let pod = annotated(two_probes(), PROBES, value);
        let warnings = untouched(&pod);
        assert_eq!(warnings.len(), 1, "{value}");
        assert!(
            warnings[0].starts_with("the Pod is unchanged: annotation probe-handler.io/probes is set, but no probe is rewritten"),
            "{warnings:?}"
        );
        assert_eq!(revert(&pod).patch, [], "{value}");
    }
    let pod = annotated(two_probes(), REWRITE_BEFORE, "x");
    assert_eq!(untouched(&pod).len(), 1);
}

#[test]
fn foreign_entries_beside_ours_are_kept() {
    let mut pod = rewritten(&two_probes());
    let mut entries = originals(&pod);
    entries["/app-health/gone/livez"] = json!({"anything": [1]});
    pod["metadata"]["annotations"][PROBES] = json!(entries.to_string());
    let after = rewritten(&later(pod));
    assert_eq!(
        originals(&after)["/app-health/gone/livez"],
        json!({"anything": [1]})
    );
}

#[test]
fn a_probe_that_replaces_a_rewritten_one_is_unchanged() {
    let mut pod = rewritten(&two_probes());
    pod["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"port": 81}});
    assert_eq!(
        untouched(&pod),
        [
            "container \"web\", livenessProbe: annotation probe-handler.io/probes already has an original for /app-health/web/livez; unchanged"
        ]
    );
}

#[test]
fn reverting_restores_the_pods_own_annotations() {
    for (annotations, after) in [
        (json!({}), json!(null)),
        (json!({"a": "b"}), json!({"a": "b"})),
        (json!({REWRITE: "t"}), json!({REWRITE: "t"})),
    ] {
        let mut pod = two_probes();
        pod["metadata"]["annotations"] = annotations;
        let rewritten = rewritten(&pod);
        let reverted = apply(&rewritten, &revert(&rewritten));
        assert_eq!(reverted["metadata"]["annotations"], after);
        assert_eq!(reverted["spec"], pod["spec"]);
    }
}

#[test]
fn reverting_removes_metadata_that_rewriting_created() {
    let mut pod = two_probes();
    pod.as_object_mut().unwrap().remove("metadata");
    let rewritten = rewritten(&pod);
    assert_eq!(apply(&rewritten, &revert(&rewritten)), pod);
}

#[test]
fn reverting_keeps_other_changes_beside_the_probes() {
    let mut pod = rewritten(&two_probes());
    pod["spec"]["containers"][0]["livenessProbe"]["periodSeconds"] = json!(7);
    pod["spec"]["containers"][0]["image"] = json!("web:2");
    let reverted = apply(&pod, &revert(&pod));
    assert_eq!(
        reverted["spec"]["containers"][0]["livenessProbe"],
        json!({"tcpSocket": {"port": 80}, "periodSeconds": 7})
    );
    assert_eq!(reverted["spec"]["containers"][0]["image"], "web:2");
}

#[test]
fn reverting_keeps_the_annotation_while_a_probe_needs_it() {
    let mut pod = rewritten(&two_probes());
    let mut entries = originals(&pod);
    entries["/app-health/web/livez"] = json!({"tcpSocket": {"port": 80}, "httpGet": {"port": 80}});
    pod["metadata"]["annotations"][PROBES] = json!(entries.to_string());
    let admission = revert(&pod);
    assert_eq!((admission.changed, admission.warnings.len()), (1, 1));
    let reverted = apply(&pod, &admission);
    assert_eq!(reverted["metadata"], pod["metadata"]);
    assert_eq!(
        reverted["spec"]["containers"][0]["livenessProbe"],
        pod["spec"]["containers"][0]["livenessProbe"]
    );
}
