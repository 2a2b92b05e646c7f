//! Finds the pods in an object.

use json_patch::jsonptr::PointerBuf;
use serde_json::Value;

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
