//! The rules for the Role of the kubectl plugin's users.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role};
use serde_json::Value;

use super::rules::{Rule, one};

/// All rules.
pub const RULES: &[(&str, Rule)] = &[
    ("the-plugins-role-allows-its-two-requests", two_requests),
    ("nobody-has-the-plugins-role-yet", unbound),
];

/// The plugin's tests run it with these permissions and no others.
fn two_requests(_: &str, objects: &[Value]) -> Result<()> {
    let roles: Vec<Value> = roles(objects).cloned().collect();
    let role: Role = one(&roles, "Role")?;
    let namespace = role.metadata.namespace.context("no namespace")?;
    let daemon_set: DaemonSet = one(objects, "DaemonSet")?;
    ensure!(
        daemon_set.metadata.namespace.as_deref() == Some(&*namespace),
        "the daemons are not in {namespace}"
    );
    let rules = role.rules.context("no rules")?;
    let rules: Vec<_> = rules.iter().map(permission).collect::<Result<_>>()?;
    let expected = [
        ("pods".to_owned(), vec!["list".to_owned()]),
        (
            "pods/portforward".to_owned(),
            vec!["get".to_owned(), "create".to_owned()],
        ),
    ];
    ensure!(rules == expected, "{rules:?}");
    Ok(())
}

/// Resource and verbs of a rule for one resource of the core group.
fn permission(rule: &PolicyRule) -> Result<(String, Vec<String>)> {
    let [resource] = &rule.resources.clone().unwrap_or_default()[..] else {
        anyhow::bail!("not one resource: {:?}", rule.resources);
    };
    let core = Some(vec![String::new()]);
    ensure!(rule.api_groups == core, "{:?}", rule.api_groups);
    ensure!(rule.non_resource_urls.is_none(), "nonResourceURLs");
    Ok((resource.clone(), rule.verbs.clone()))
}

/// The plugin's users are different in each cluster; the daemon and the webhook do not use the Role.
fn unbound(_: &str, objects: &[Value]) -> Result<()> {
    for role in roles(objects) {
        let name = &role["metadata"]["name"];
        let bound = objects
            .iter()
            .any(|object| &object["roleRef"]["name"] == name);
        ensure!(!bound, "{name} is bound");
    }
    Ok(())
}

/// The Roles of the plugin: other Roles are the webhook's.
pub fn roles(objects: &[Value]) -> impl Iterator<Item = &Value> {
    objects.iter().filter(|object| is_role(object))
}

/// Whether an object is that Role. Kustomizations may change the beginning and the end of its name.
pub fn is_role(object: &Value) -> bool {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    object["kind"] == "Role" && name.contains("probe-handler-plugin")
}
