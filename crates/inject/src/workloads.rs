//! Finds the pods in an object.

use json_patch::jsonptr::PointerBuf;
use pods::scope::{HTTP, MODE};
use serde_json::Value;
use webhook::annotations::REWRITE;
use webhook::injection::REWRITE_LABEL;

/// The annotation that keeps a pod out of Istio's mesh.
const INJECT: &str = "sidecar.istio.io/inject";

/// The place of a Pod or pod template.
#[derive(Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Where it is in the object.
    pub at: PointerBuf,
    /// The namespace of its workload, if the workload names one.
    pub namespace: Option<&'a str>,
}

/// The places of Pods and pod templates in `object`: a Pod itself, the workloads of Kubernetes,
/// and Lists of these. Kinds of other API groups are ignored, whatever their name.
pub fn pods(object: &Value) -> Vec<Place<'_>> {
    let mut places = Vec::new();
    find(object, &PointerBuf::new(), ("", ""), &mut places);
    places
}

/// Why an object that creates pods has none that are changed here: its kind is of another API group, such as Argo's Rollout or
/// Knative's Service.
pub fn unknown_workload(object: &Value) -> Option<String> {
    let containers = object.pointer("/spec/template/spec/containers")?;
    let is_known = !pods(object).is_empty();
    (containers.is_array() && !is_known).then(|| {
        let version = object.get("apiVersion").and_then(Value::as_str);
        format!(
            "its pods are unchanged, because {} is not one of Kubernetes' own workloads; the webhook rewrites its pods",
            version.unwrap_or("an object without apiVersion")
        )
    })
}

/// What has an effect only on pods, and is on the workload at `object` instead of its pod template.
pub fn misplaced(object: &Value) -> Vec<String> {
    const LABELS: [&str; 2] = [MODE, REWRITE_LABEL];
    const ANNOTATIONS: [&str; 3] = [HTTP, REWRITE, INJECT];
    let template = object.pointer("/spec/template/metadata");
    let has_template = object.pointer("/spec/template/spec").is_some();
    let of = |kind: &'static str, keys: &'static [&'static str]| {
        keys.iter().filter_map(move |key| {
            let here = object.get("metadata")?.get(kind)?.get(key)?;
            let there = template.and_then(|metadata| metadata.get(kind)?.get(key));
            (has_template && there.is_none()).then(|| {
                let kind = kind.trim_end_matches('s');
                format!(
                    "{kind} {key}={here} has no effect on a workload; set it in spec.template.metadata.{kind}s"
                )
            })
        })
    };
    of("labels", &LABELS)
        .chain(of("annotations", &ANNOTATIONS))
        .collect()
}

/// `implied` are the apiVersion and kind of an object that has none.
fn find<'a>(
    object: &'a Value,
    at: &PointerBuf,
    implied: (&str, &str),
    places: &mut Vec<Place<'a>>,
) {
    let text = |name: &str, implied| match object.get(name) {
        Some(value) => value.as_str().unwrap_or_default(),
        None => implied,
    };
    let (version, kind) = (text("apiVersion", implied.0), text("kind", implied.1));
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let template: &[&str] = match (group, kind) {
        ("", "Pod") => &[],
        ("", "PodTemplate") => &["template"],
        ("", "ReplicationController")
        | ("apps" | "extensions", "Deployment" | "DaemonSet" | "ReplicaSet")
        | ("apps", "StatefulSet")
        | ("batch", "Job") => &["spec", "template"],
        ("batch", "CronJob") => &["spec", "jobTemplate", "spec", "template"],
        _ => {
            // Items of a PodList may omit apiVersion and kind, those of a List may not.
            if let Some(item) = kind.strip_suffix("List")
                && let Some(Value::Array(items)) = object.get("items")
            {
                for (index, value) in items.iter().enumerate() {
                    let mut at = at.clone();
                    at.push_back("items");
                    at.push_back(index);
                    find(value, &at, (version, item), places);
                }
            }
            return;
        }
    };
    let template = PointerBuf::from_tokens(template.iter().copied());
    if template.resolve(object).is_ok_and(Value::is_object) {
        let namespace = object.pointer("/metadata/namespace");
        places.push(Place {
            at: at.concat(&template),
            namespace: namespace.and_then(Value::as_str),
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(object: &Value) -> Vec<String> {
        pods(object)
            .iter()
            .map(|place| place.at.to_string())
            .collect()
    }

    #[test]
    fn pods_are_found_in_every_workload() {
        let template = json!({"template": {"spec": {}}});
        for (version, kind, body, place) in [
            ("v1", "Pod", json!({}), ""),
            ("v1", "PodTemplate", template.clone(), "/template"),
            (
                "v1",
                "ReplicationController",
                json!({"spec": template}),
                "/spec/template",
            ),
            (
                "apps/v1",
                "Deployment",
                json!({"spec": template}),
                "/spec/template",
            ),
            (
                "extensions/v1beta1",
                "Deployment",
                json!({"spec": template}),
                "/spec/template",
            ),
            (
                "apps/v1",
                "StatefulSet",
                json!({"spec": template}),
                "/spec/template",
            ),
            (
                "apps/v1",
                "DaemonSet",
                json!({"spec": template}),
                "/spec/template",
            ),
            (
                "apps/v1",
                "ReplicaSet",
                json!({"spec": template}),
                "/spec/template",
            ),
            (
                "batch/v1",
                "Job",
                json!({"spec": template}),
                "/spec/template",
            ),
            (
                "batch/v1",
                "CronJob",
                json!({"spec": {"jobTemplate": {"spec": template}}}),
                "/spec/jobTemplate/spec/template",
            ),
        ] {
            let mut object = body;
            object["apiVersion"] = json!(version);
            object["kind"] = json!(kind);
            assert_eq!(found(&object), [place], "{kind}");
            let list = json!({"apiVersion": "v1", "kind": "List", "items": [{}, object]});
            assert_eq!(found(&list), [format!("/items/1{place}")], "{kind}");
        }
    }

    #[test]
    fn items_of_a_typed_list_may_omit_their_kind() {
        let list = json!({"apiVersion": "v1", "kind": "PodList", "items": [{"spec": {}}]});
        assert_eq!(found(&list), ["/items/0"]);
        let list = json!({"apiVersion": "apps/v1", "kind": "DeploymentList",
            "items": [{"spec": {"template": {}}}]});
        assert_eq!(found(&list), ["/items/0/spec/template"]);
    }

    #[test]
    fn workloads_of_other_groups_are_named() {
        let of = |version: &str, kind: &str| {
            unknown_workload(&json!({"apiVersion": version, "kind": kind,
                "spec": {"template": {"spec": {"containers": []}}}}))
        };
        for (version, kind) in [
            ("argoproj.io/v1alpha1", "Rollout"),
            ("serving.knative.dev/v1", "Service"),
        ] {
            assert!(
                of(version, kind).is_some_and(|why| why.contains(version)),
                "{kind}"
            );
        }
        assert_eq!(of("apps/v1", "Deployment"), None);
        assert_eq!(
            unknown_workload(&json!({"apiVersion": "v1", "kind": "Service", "spec": {}})),
            None
        );
    }

    #[test]
    fn what_selects_pods_has_no_effect_on_their_workload() {
        let deployment = |metadata: Value, template: Value| {
            misplaced(
                &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
                "spec": {"template": {"metadata": template, "spec": {}}}}),
            )
        };
        let off = json!({"labels": {MODE: "off"}});
        assert_eq!(
            deployment(off.clone(), json!({})),
            [format!(
                "label {MODE}=\"off\" has no effect on a workload; set it in spec.template.metadata.labels"
            )]
        );
        assert_eq!(deployment(off.clone(), off.clone()), [""; 0]);
        let opt_out = json!({"annotations": {REWRITE: "false", "other": "x"}});
        assert_eq!(deployment(opt_out, json!({})).len(), 1);
        // On a Pod it has an effect.
        assert_eq!(
            misplaced(&json!({"kind": "Pod", "metadata": off, "spec": {}})),
            [""; 0]
        );
    }

    #[test]
    fn other_objects_are_ignored() {
        for object in [
            json!(null),
            json!([]),
            json!("Pod"),
            json!({"kind": "Service"}),
            json!({"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "spec": {"template": {}}}),
            json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "spec": {"template": {}}}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment"}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": null}}),
            json!({"apiVersion": "v1", "kind": "List", "items": [{"spec": {}}, 7]}),
            json!({"apiVersion": "v1", "kind": "List", "items": 7}),
            json!({"apiVersion": 1, "kind": ["Pod"]}),
        ] {
            assert_eq!(found(&object), [""; 0], "{object}");
        }
    }
}
