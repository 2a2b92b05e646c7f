//! Checks whether the rules of Roles and ClusterRoles allow a request (kubernetes plugin/pkg/auth/authorizer/rbac,
//! `RuleAllows`).

use serde_json::Value;

use super::Asked;

/// A PolicyRule and its namespace; `None`: all namespaces and cluster-scoped resources.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) namespace: Option<String>,
    pub(super) rule: Value,
}

impl Rule {
    pub(super) fn allows(&self, asked: &Asked) -> bool {
        let has = |field: &str, wanted: &str| {
            let values = self.rule[field].as_array();
            values.is_some_and(|values| values.iter().any(|value| value == wanted || value == "*"))
        };
        // A list or watch with a field selector for one name counts as a request for that object.
        let named = asked.name.as_deref().or_else(|| {
            let selector = asked.param("fieldSelector");
            selector.strip_prefix("metadata.name=")
        });
        (self.namespace.is_none() || self.namespace == asked.namespace)
            && has("verbs", &asked.verb)
            && has("apiGroups", &asked.group)
            && has("resources", &asked.resource)
            && match self.rule["resourceNames"].as_array() {
                Some(names) if !names.is_empty() => {
                    named.is_some_and(|name| names.iter().any(|one| one == name))
                }
                _ => true,
            }
    }
}
