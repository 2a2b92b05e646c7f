//! Checks objects strictly against Kubernetes' schema: an unknown field or a wrong type is an error.
//!
//! An object is deserialised into the type of the newest API that this repository supports, and serialised
//! again. A misspelt or misplaced field is lost, and a value of another type is refused. The API server
//! reports this only with `--validate=strict`; otherwise it drops the field.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration,
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cert_manager::{Certificate, Issuer};

/// Checks that the API server keeps an object as it is written.
///
/// # Errors
/// The unknown field, or the value of a wrong type.
pub fn check(object: &Value) -> Result<()> {
    let text = |key: &str| object[key].as_str().with_context(|| format!("no {key}"));
    match (text("apiVersion")?, text("kind")?) {
        ("v1", "Namespace") => same::<Namespace>(object),
        ("v1", "ServiceAccount") => same::<ServiceAccount>(object),
        ("v1", "ResourceQuota") => same::<ResourceQuota>(object),
        ("v1", "ConfigMap") => same::<ConfigMap>(object),
        ("v1", "Secret") => same::<Secret>(object),
        ("v1", "Service") => same::<Service>(object),
        ("apps/v1", "Deployment") => same::<Deployment>(object),
        ("policy/v1", "PodDisruptionBudget") => same::<PodDisruptionBudget>(object),
        ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration") => {
            same::<MutatingWebhookConfiguration>(object)
        }
        ("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy") => {
            same::<MutatingAdmissionPolicy>(object)
        }
        ("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicyBinding") => {
            same::<MutatingAdmissionPolicyBinding>(object)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => {
            same::<ValidatingAdmissionPolicy>(object)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            same::<ValidatingAdmissionPolicyBinding>(object)
        }
        ("cert-manager.io/v1", "Certificate") => same::<Certificate>(object),
        ("cert-manager.io/v1", "Issuer") => same::<Issuer>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => same::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => same::<RoleBinding>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => same::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            same::<ClusterRoleBinding>(object)
        }
        ("apps/v1", "DaemonSet") => same::<DaemonSet>(object),
        ("monitoring.coreos.com/v1", "PodMonitor") => same::<PodMonitor>(object),
        ("monitoring.coreos.com/v1", "PrometheusRule") => same::<PrometheusRule>(object),
        (version, kind) => bail!("no schema is known here for {kind} of {version}"),
    }
}

fn same<T: DeserializeOwned + Serialize>(object: &Value) -> Result<()> {
    let read: T = serde_json::from_value(object.clone())?;
    let mut differences = Vec::new();
    differ("", object, &serde_json::to_value(read)?, &mut differences);
    ensure!(
        differences.is_empty(),
        "not as in the schema: {}",
        differences.join("; ")
    );
    Ok(())
}

/// The paths where `read` lacks or changes a value of `written`. A value that is only in `read` is a default.
fn differ(path: &str, written: &Value, read: &Value, into: &mut Vec<String>) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (key, value) in written {
                let path = format!("{path}.{key}");
                match read.get(key) {
                    Some(read) => differ(&path, value, read, into),
                    None => into.push(format!("{path} is unknown")),
                }
            }
        }
        (Value::Array(written), Value::Array(read)) if written.len() == read.len() => {
            for (index, (written, read)) in written.iter().zip(read).enumerate() {
                differ(&format!("{path}[{index}]"), written, read, into);
            }
        }
        _ if written == read => {}
        _ => into.push(format!("{path} is read as {read}, not as {written}")),
    }
}

/// The fields that we use of the Prometheus operator's PodMonitor (its CRD, `monitoring.coreos.com/v1`; API reference,
/// PodMonitorSpec, PodMetricsEndpoint and RelabelConfig). It is not part of Kubernetes, so our library does not define it.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMonitor {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: PodMonitorSpec,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMonitorSpec {
    job_label: String,
    selector: LabelSelector,
    pod_metrics_endpoints: Vec<PodMetricsEndpoint>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMetricsEndpoint {
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<String>,
    path: String,
    interval: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    honor_labels: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    relabelings: Option<Vec<RelabelConfig>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RelabelConfig {
    source_labels: Vec<String>,
    target_label: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    regex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replacement: Option<String>,
}

/// The fields that we use of its PrometheusRule (API reference, PrometheusRuleSpec, RuleGroup and Rule). `for` is
/// optional there and required here.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PrometheusRule {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: PrometheusRuleSpec,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct PrometheusRuleSpec {
    groups: Vec<RuleGroup>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RuleGroup {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Rule {
    Alerting(AlertingRule),
    Recording(RecordingRule),
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RecordingRule {
    record: String,
    expr: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct AlertingRule {
    alert: String,
    expr: String,
    r#for: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn daemon_set(container: Value) -> Value {
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "a"},
            "spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "template": {"spec": {"containers": [container]}},
            },
        })
    }

    #[test]
    fn an_object_of_the_schema_passes() {
        let container = json!({
            "name": "a",
            "image": "b",
            "resources": {"limits": {"memory": "128Mi"}},
            "livenessProbe": {"httpGet": {"port": 80, "path": "/"}},
        });
        check(&daemon_set(container)).expect("right");
    }

    #[test]
    fn a_field_that_the_schema_has_not_is_named() {
        let misspelt = daemon_set(json!({"name": "a", "imagePolicy": "Never"}));
        let error = check(&misspelt).expect_err("misspelt").to_string();
        assert!(
            error.contains(".spec.template.spec.containers[0].imagePolicy is unknown"),
            "{error}"
        );
        let misplaced = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}, "labels": {}});
        assert!(check(&misplaced).is_err());
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for container in [
            json!({"name": "a", "args": "--flag"}),
            json!({"name": "a", "livenessProbe": {"periodSeconds": "10"}}),
            json!({"name": "a", "env": [{"name": "A", "value": 1}]}),
        ] {
            assert!(
                check(&daemon_set(container.clone())).is_err(),
                "{container}"
            );
        }
    }

    #[test]
    fn a_kind_without_a_schema_does_not_pass_unseen() {
        for object in [
            json!({"apiVersion": "apps/v1", "kind": "StatefulSet"}),
            json!({"apiVersion": "apps/v1beta1", "kind": "DaemonSet"}),
            json!({"kind": "DaemonSet"}),
            json!({"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": {},
                   "spec": {"selector": {}, "podMetricsEndpoint": []}}),
            json!({"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {},
                   "spec": {"groups": [{"name": "a", "rules": [{"alert": "A", "expression": "b"}]}]}}),
        ] {
            assert!(check(&object).is_err(), "{object}");
        }
    }
}
