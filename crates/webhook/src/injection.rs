//! Detects pods that no mesh will inject: their probes pass without the daemon, so they are not rewritten.
//!
//! Only the pod and the name of its namespace are visible here, not the namespace's labels nor the meshes'
//! configuration (Istio's `neverInjectSelector`, `alwaysInjectSelector` and `policy`).

use k8s_openapi::api::core::v1::Pod;

use pods::mesh::{annotation, mesh_of};
use pods::probers::parse_bool;

/// Label with value `enabled` of pods that are rewritten regardless of the meshes. On a namespace it makes API
/// servers send its pods to the webhook.
pub const REWRITE_LABEL: &str = "probe-handler.io/rewrite";

/// Namespaces in which Istio's injector leaves all pods unchanged (istio pkg/kube/inject `IgnoredNamespaces`).
const IGNORED: [&str; 4] = [
    "kube-system",
    "kube-public",
    "kube-node-lease",
    "local-path-storage",
];

/// Whether the author of `pod` keeps it out of its mesh: some mesh may not inject it, no other mesh is requested, and
/// no mesh is in it already. A pod with [`REWRITE_LABEL`] is never kept out.
pub fn is_kept_out(pod: &Pod, namespace: Option<&str>) -> bool {
    if label(pod, REWRITE_LABEL) == Some("enabled") || mesh_of(pod).is_some() {
        return false;
    }
    let ignored = namespace.is_some_and(|namespace| IGNORED.contains(&namespace));
    let istio = if ignored { Some(false) } else { istio(pod) };
    let requests = [
        istio,
        ambient(pod),
        linkerd(pod),
        kuma(pod),
        consul(pod),
        osm(pod),
    ];
    requests.contains(&Some(false)) && !requests.contains(&Some(true))
}

fn label<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// What the pod requests of Istio's injector (istio pkg/kube/inject/inject.go `injectRequired`). The label takes
/// precedence over the annotation even if it is empty; an empty value requests nothing. Every word that does not mean
/// yes means no.
fn istio(pod: &Pod) -> Option<bool> {
    const INJECT: &str = "sidecar.istio.io/inject";
    let value = label(pod, INJECT).or_else(|| annotation(pod, INJECT))?;
    match value.to_lowercase().as_str() {
        "" => None,
        word => Some(matches!(word, "y" | "yes" | "true" | "on")),
    }
}

/// Istio ambient. `none` keeps the pod out of ztunnel only; a sidecar may still be injected.
fn ambient(pod: &Pod) -> Option<bool> {
    (label(pod, "istio.io/dataplane-mode") == Some("ambient")).then_some(true)
}

/// Linkerd (linkerd2 pkg/inject/report.go `disabledByAnnotation`): an unknown word disables injection.
fn linkerd(pod: &Pod) -> Option<bool> {
    match annotation(pod, "linkerd.io/inject")? {
        "" => None,
        word => Some(matches!(word, "enabled" | "ingress")),
    }
}

/// Kuma (kuma pkg/plugins/runtime/k8s/metadata `GetEnabled`): the label first, for older versions the annotation.
fn kuma(pod: &Pod) -> Option<bool> {
    const INJECT: &str = "kuma.io/sidecar-injection";
    match label(pod, INJECT).or_else(|| annotation(pod, INJECT))? {
        "enabled" | "true" => Some(true),
        "disabled" | "false" => Some(false),
        _ => None,
    }
}

/// Consul (consul-k8s control-plane/connect-inject/webhook `shouldInject`): a boolean of Go's strconv.
fn consul(pod: &Pod) -> Option<bool> {
    annotation(pod, "consul.hashicorp.com/connect-inject").and_then(parse_bool)
}

/// OSM (osm pkg/injector/webhook.go `isAnnotatedForInjection`).
fn osm(pod: &Pod) -> Option<bool> {
    let value = annotation(pod, "openservicemesh.io/sidecar-injection")?;
    match value.to_lowercase().as_str() {
        "enabled" | "yes" | "true" => Some(true),
        "disabled" | "no" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const INJECT: &str = "sidecar.istio.io/inject";

    fn kept_out(metadata: Value, spec: Value) -> bool {
        let namespace = metadata["namespace"].as_str().map(str::to_owned);
        let pod = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        is_kept_out(&pod, namespace.as_deref())
    }

    fn by(labels: Value, annotations: Value) -> bool {
        kept_out(
            json!({"labels": labels, "annotations": annotations}),
            json!({"containers": []}),
        )
    }

    #[test]
    fn istios_words_have_the_meaning_that_istio_gives_them() {
        for yes in [
            "y", "Y", "yes", "Yes", "YES", "yEs", "true", "TRUE", "tRuE", "on", "ON", "",
        ] {
            assert!(!by(json!({}), json!({INJECT: yes})), "{yes:?}");
            assert!(!by(json!({INJECT: yes}), json!({})), "{yes:?}");
        }
        for no in [
            "false", "False", "n", "no", "off", "0", "1", "t", "enabled", "disabled", " true",
            "true ", "?",
        ] {
            assert!(by(json!({}), json!({INJECT: no})), "{no:?}");
            assert!(by(json!({INJECT: no}), json!({})), "{no:?}");
        }
    }

    #[test]
    fn istios_label_takes_precedence_over_its_annotation() {
        assert!(by(json!({INJECT: "false"}), json!({INJECT: "true"})));
        assert!(!by(json!({INJECT: "true"}), json!({INJECT: "false"})));
        assert!(!by(json!({INJECT: ""}), json!({INJECT: "false"})));
    }

    #[test]
    fn istio_ignores_some_namespaces_whatever_the_pod_requests() {
        for namespace in IGNORED {
            let metadata = json!({"namespace": namespace, "labels": {INJECT: "true"}});
            assert!(kept_out(metadata, json!({"containers": []})), "{namespace}");
        }
        for namespace in ["default", "kube-systems", "istio-system"] {
            let metadata = json!({"namespace": namespace});
            assert!(
                !kept_out(metadata, json!({"containers": []})),
                "{namespace}"
            );
        }
    }

    #[test]
    fn the_other_meshes_have_words_of_their_own() {
        for (key, yes, no, neither) in [
            (
                "linkerd.io/inject",
                &["enabled", "ingress"][..],
                &["disabled", "Enabled", "true"][..],
                &[""][..],
            ),
            (
                "kuma.io/sidecar-injection",
                &["enabled", "true"],
                &["disabled", "false"],
                &["no", ""],
            ),
            (
                "consul.hashicorp.com/connect-inject",
                &["true", "1", "T"],
                &["false", "0", "F", "False"],
                &["no", ""],
            ),
            (
                "openservicemesh.io/sidecar-injection",
                &["enabled", "Yes", "TRUE"],
                &["disabled", "No", "false"],
                &["off", ""],
            ),
        ] {
            for value in no {
                assert!(by(json!({}), json!({key: value})), "{key}: {value}");
            }
            for value in yes.iter().chain(neither) {
                assert!(!by(json!({}), json!({key: value})), "{key}: {value}");
            }
            // A requested mesh takes precedence over another one that is declined.
            for value in yes {
                let annotations = json!({key: value, INJECT: "false"});
                assert!(!by(json!({}), annotations), "{key}: {value}");
            }
        }
        let kuma = "kuma.io/sidecar-injection";
        assert!(by(json!({kuma: "disabled"}), json!({kuma: "enabled"})));
        let ambient = json!({"istio.io/dataplane-mode": "ambient", INJECT: "false"});
        assert!(!by(ambient, json!({})));
    }

    #[test]
    fn a_pod_with_a_mesh_in_it_is_not_kept_out() {
        let declined = json!({"annotations": {INJECT: "false"}});
        // Injected by hand (istioctl kube-inject), as containers or as native sidecar.
        for spec in [
            json!({"containers": [{"name": "istio-proxy"}]}),
            json!({"containers": [], "initContainers": [{"name": "istio-proxy"}]}),
        ] {
            assert!(!kept_out(declined.clone(), spec));
        }
        assert!(kept_out(declined, json!({"containers": [{"name": "web"}]})));
        let injected = json!({INJECT: "false", "sidecar.istio.io/status": "{}"});
        assert!(!by(json!({}), injected));
    }

    #[test]
    fn our_own_label_on_the_pod_requests_rewriting_in_any_case() {
        let declined = json!({INJECT: "false"});
        assert!(!by(json!({REWRITE_LABEL: "enabled"}), declined.clone()));
        assert!(by(json!({REWRITE_LABEL: "disabled"}), declined));
    }
}
