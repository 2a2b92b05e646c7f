//! Checks that each name in an object is that of an object of the same rendering, because a kustomization with
//! `namePrefix`, `nameSuffix` or `namespace` renames objects, and only those references that kustomize finds.

use anyhow::{Context, Result, ensure};
use probe_handler::cli::config::{CertificateSource, SettingsSource};
use serde_json::Value;

use super::rules::Rule;
use super::webhook;

/// The rules for every rendering.
pub const RULES: &[(&str, Rule)] = &[
    ("each-reference-names-a-rendered-object", objects_exist),
    ("the-own-namespace-is-the-excluded-one", excluded_namespace),
    ("a-quota-allows-each-systems-priority", quota),
    ("all-are-in-one-namespace", one_namespace),
];
/// The rules for renderings with the webhook.
pub const WEBHOOK_RULES: &[(&str, Rule)] = &[
    ("the-webhooks-arguments-name-rendered-objects", arguments),
    ("cert-managers-certificate-is-for-the-service", certificate),
];

/// A reference to an object.
#[derive(Debug, PartialEq)]
struct Reference {
    kind: String,
    /// `None`: an object without a namespace.
    namespace: Option<String>,
    name: String,
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn reference(kind: &str, namespace: Option<String>, name: &Value) -> Option<Reference> {
    Some(Reference {
        kind: kind.to_owned(),
        namespace,
        name: text(name)?,
    })
}

/// The kind of the objects that a rule names in `resourceNames`.
fn kind_of(resource: &str) -> Option<&'static str> {
    match resource {
        "secrets" => Some("Secret"),
        "configmaps" => Some("ConfigMap"),
        "mutatingwebhookconfigurations" => Some("MutatingWebhookConfiguration"),
        _ => None,
    }
}

/// The objects that `object` names.
fn references(object: &Value) -> Vec<Reference> {
    let own = text(&object["metadata"]["namespace"]);
    let mut found = Vec::new();
    let mut add = |kind: &str, namespace: Option<String>, name: &Value| {
        found.extend(reference(kind, namespace, name));
    };
    match object["kind"].as_str().unwrap_or_default() {
        "RoleBinding" | "ClusterRoleBinding" => {
            let role = &object["roleRef"];
            add(role["kind"].as_str().unwrap_or("?"), own, &role["name"]);
            for subject in list(&object["subjects"]) {
                add(
                    "ServiceAccount",
                    text(&subject["namespace"]),
                    &subject["name"],
                );
            }
        }
        "Role" | "ClusterRole" => {
            for rule in list(&object["rules"]) {
                let kinds = list(&rule["resources"]).iter().filter_map(Value::as_str);
                for kind in kinds.filter_map(kind_of) {
                    for name in list(&rule["resourceNames"]) {
                        add(kind, own.clone(), name);
                    }
                }
            }
        }
        "MutatingWebhookConfiguration" => {
            for webhook in list(&object["webhooks"]) {
                let service = &webhook["clientConfig"]["service"];
                add("Service", text(&service["namespace"]), &service["name"]);
            }
        }
        "MutatingAdmissionPolicyBinding" => {
            add(
                "MutatingAdmissionPolicy",
                own,
                &object["spec"]["policyName"],
            );
        }
        "ValidatingAdmissionPolicyBinding" => {
            add(
                "ValidatingAdmissionPolicy",
                own,
                &object["spec"]["policyName"],
            );
        }
        "ValidatingAdmissionPolicy" => {
            // "system:serviceaccount:NAMESPACE:NAME:" == ...
            let by = &object["spec"]["matchConditions"][0]["expression"];
            let mut parts = by.as_str().unwrap_or_default().split(':').skip(2);
            let (namespace, name) = (parts.next(), parts.next());
            let name = Value::from(name.unwrap_or_default());
            add("ServiceAccount", namespace.map(str::to_owned), &name);
        }
        "Certificate" => add("Issuer", own, &object["spec"]["issuerRef"]["name"]),
        "DaemonSet" | "Deployment" => {
            let pod = &object["spec"]["template"]["spec"];
            add("ServiceAccount", own.clone(), &pod["serviceAccountName"]);
            for volume in list(&pod["volumes"]) {
                // The operator's, of which deploy/ has none.
                if volume["configMap"]["name"] == "probe-handler-settings" {
                    continue;
                }
                add("Secret", own.clone(), &volume["secret"]["secretName"]);
                add("ConfigMap", own.clone(), &volume["configMap"]["name"]);
            }
        }
        _ => {}
    }
    found
}

/// What `object` is, or what is created from it.
fn defined(object: &Value) -> Vec<Reference> {
    let namespace = text(&object["metadata"]["namespace"]);
    let kind = object["kind"].as_str().unwrap_or("?");
    let itself = reference(kind, namespace.clone(), &object["metadata"]["name"]);
    let secret = (kind == "Certificate")
        .then(|| reference("Secret", namespace, &object["spec"]["secretName"]));
    itself.into_iter().chain(secret.flatten()).collect()
}

fn objects_exist(_: &str, objects: &[Value]) -> Result<()> {
    let defined: Vec<Reference> = objects.iter().flat_map(defined).collect();
    for object in objects {
        for reference in references(object) {
            ensure!(
                defined.contains(&reference),
                "{} names {reference:?}, which is not rendered",
                super::name_of(object)
            );
        }
    }
    Ok(())
}

/// The webhook and the policy do not apply to the daemon's own namespace, if it is part of the rendering.
fn excluded_namespace(_: &str, objects: &[Value]) -> Result<()> {
    let Some(namespace) = objects.iter().find(|object| object["kind"] == "Namespace") else {
        return Ok(());
    };
    let name = &namespace["metadata"]["name"];
    for object in objects {
        let selectors = list(&object["webhooks"])
            .iter()
            .map(|webhook| &webhook["namespaceSelector"])
            .chain([&object["spec"]["matchConstraints"]["namespaceSelector"]])
            .filter(|selector| !selector.is_null());
        for selector in selectors {
            let excluded = list(&selector["matchExpressions"])
                .iter()
                .any(|expression| {
                    expression["operator"] == "NotIn" && list(&expression["values"]).contains(name)
                });
            ensure!(excluded, "{} selects {name}", super::name_of(object));
        }
    }
    Ok(())
}

/// Components know the usual one only, and a kustomization around them may have another.
fn one_namespace(_: &str, objects: &[Value]) -> Result<()> {
    let of = |object: &Value| text(&object["metadata"]["namespace"]);
    let mut placed = objects
        .iter()
        .filter_map(|object| Some((of(object)?, object)));
    let Some((first, _)) = placed.next() else {
        return Ok(());
    };
    for (namespace, object) in placed {
        let name = super::name_of(object);
        ensure!(namespace == first, "{name} is in {namespace}, not {first}");
    }
    Ok(())
}

/// Some clusters refuse pods of such a priority in a namespace without a quota for it (apiserver option
/// `--admission-control-config-file`, `limitedResources` of ResourceQuota).
fn quota(_: &str, objects: &[Value]) -> Result<()> {
    for object in objects {
        let priority = &object["spec"]["template"]["spec"]["priorityClassName"];
        let allows = |quota: &&Value| {
            let scopes = list(&quota["spec"]["scopeSelector"]["matchExpressions"]);
            quota["kind"] == "ResourceQuota"
                && quota["metadata"]["namespace"] == object["metadata"]["namespace"]
                && scopes.iter().any(|scope| {
                    scope["scopeName"] == "PriorityClass"
                        && list(&scope["values"]).contains(priority)
                })
        };
        let allowed = priority.is_null() || objects.iter().any(|quota| allows(&quota));
        ensure!(allowed, "{}: {priority}", super::name_of(object));
    }
    Ok(())
}

fn arguments(_: &str, objects: &[Value]) -> Result<()> {
    let config = webhook::config(objects)?;
    let mut named = Vec::new();
    if let SettingsSource::ConfigMap(name) = config.settings {
        named.push(("ConfigMap", name));
    }
    if let CertificateSource::SelfSigned {
        service,
        secret,
        configuration,
    } = config.certificate
    {
        named.push(("Service", service));
        named.push(("Secret", secret));
        named.push(("MutatingWebhookConfiguration", configuration));
    }
    for (kind, name) in named {
        let rendered = objects
            .iter()
            .any(|object| object["kind"] == kind && object["metadata"]["name"] == name.as_str());
        ensure!(rendered, "{kind} {name} is not rendered");
    }
    Ok(())
}

/// API servers verify the certificate for `SERVICE.NAMESPACE.svc`; cert-manager writes the authority of the Certificate
/// in the annotation into `caBundle`.
fn certificate(_: &str, objects: &[Value]) -> Result<()> {
    let of_kind = |kind| objects.iter().find(|object| object["kind"] == kind);
    let Some(certificate) = of_kind("Certificate") else {
        return Ok(());
    };
    let configuration = of_kind("MutatingWebhookConfiguration").context("no configuration")?;
    for webhook in list(&configuration["webhooks"]) {
        let service = &webhook["clientConfig"]["service"];
        let host = format!(
            "{}.{}.svc",
            text(&service["name"]).context("no name")?,
            text(&service["namespace"]).context("no namespace")?
        );
        let names = &certificate["spec"]["dnsNames"];
        ensure!(
            list(names).contains(&host.clone().into()),
            "{host}: {names}"
        );
    }
    let metadata = &certificate["metadata"];
    let path = format!(
        "{}/{}",
        text(&metadata["namespace"]).context("no namespace")?,
        text(&metadata["name"]).context("no name")?
    );
    let annotation = &configuration["metadata"]["annotations"]["cert-manager.io/inject-ca-from"];
    ensure!(*annotation == path, "{annotation}, not {path}");
    Ok(())
}
