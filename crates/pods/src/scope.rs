//! Which pods' probes are exempt from the mesh: the scope, and the annotations that override it.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use k8s_openapi::api::core::v1::Pod;
use model::HttpBy;
use serde::{Deserialize, Serialize};

use crate::mesh::annotation;

/// Annotation of a pod or its namespace: `"true"` exempts the pod's probes from the mesh, `"false"` does not.
pub const EXEMPT: &str = "probe-handler.io/exempt";

/// Annotation of a pod or its namespace: what serves the pod's plaintext HTTP probes, `"handler"` or `"kernel"`.
pub const HTTP: &str = "probe-handler.io/http";

/// Label of virtual machines' pods, with value [`VIRT_LAUNCHER`] (kubevirt staging/src/kubevirt.io/api/core/v1
/// `AppLabel`).
pub const KUBEVIRT: &str = "kubevirt.io";
/// See [`KUBEVIRT`].
pub const VIRT_LAUNCHER: &str = "virt-launcher";

/// Which pods are served when neither they nor their namespace have annotation [`EXEMPT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Pods in a known mesh.
    #[default]
    Meshed,
    /// Only pods with the annotation on themselves or their namespace.
    Annotated,
    /// All pods.
    All,
}

impl Scope {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meshed => "meshed",
            Self::Annotated => "annotated",
            Self::All => "all",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A scope that does not exist.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown scope {0:?}, must be meshed, annotated or all")]
pub struct UnknownScope(String);

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        [Self::Meshed, Self::Annotated, Self::All]
            .into_iter()
            .find(|scope| scope.name() == s)
            .ok_or_else(|| UnknownScope(s.to_owned()))
    }
}

/// Which pods are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The daemon's scope.
    pub scope: Scope,
    /// The value of [`EXEMPT`] on the pod's namespace.
    pub namespace_exempt: Option<bool>,
}

/// The value of [`EXEMPT`] on `pod`.
///
/// # Errors
/// The value, if it is neither `"true"` nor `"false"`.
pub fn exempt(pod: &Pod) -> Result<Option<bool>, &str> {
    match annotation(pod, EXEMPT) {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(other) => Err(other),
    }
}

/// The value of [`HTTP`] on `pod`.
///
/// # Errors
/// The value, if it is neither `"handler"` nor `"kernel"`.
pub fn http(pod: &Pod) -> Result<Option<HttpBy>, &str> {
    let value = annotation(pod, HTTP);
    value
        .map(|value| HttpBy::named(value).ok_or(value))
        .transpose()
}

/// Whether the app runs in a virtual machine. KubeVirt's packet filters redirect the pod's traffic into it:
/// the app has no sockets in the pod, so every port would look closed.
pub fn is_virtual_machine(pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(KUBEVIRT))
        .map(String::as_str)
        == Some(VIRT_LAUNCHER)
}

impl Selection {
    /// Whether a pod is served: its own annotation decides (`pod_exempt`), else its namespace's, else the
    /// scope.
    pub fn selects(&self, pod_exempt: Option<bool>, meshed: bool) -> bool {
        pod_exempt
            .or(self.namespace_exempt)
            .unwrap_or(match self.scope {
                Scope::Meshed => meshed,
                Scope::Annotated => false,
                Scope::All => true,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_decides_then_its_namespace_then_the_scope() {
        let yes = Some(true);
        let no = Some(false);
        for (scope, namespace_exempt, pod_exempt, meshed, served) in [
            (Scope::Meshed, None, None, true, true),
            (Scope::Meshed, None, None, false, false),
            (Scope::Annotated, None, None, true, false),
            (Scope::All, None, None, false, true),
            (Scope::Annotated, yes, None, false, true),
            (Scope::All, no, None, true, false),
            (Scope::All, yes, no, true, false),
            (Scope::Annotated, no, yes, false, true),
        ] {
            let selection = Selection {
                scope,
                namespace_exempt,
            };
            assert_eq!(
                selection.selects(pod_exempt, meshed),
                served,
                "{selection:?} {pod_exempt:?} {meshed}"
            );
        }
    }

    #[test]
    fn a_scope_is_parsed_from_its_name() {
        for scope in [Scope::Meshed, Scope::Annotated, Scope::All] {
            assert_eq!(scope.to_string().parse(), Ok(scope));
            assert_eq!(
                scope.to_possible_value().unwrap().get_name(),
                scope.to_string()
            );
        }
        assert!("Meshed".parse::<Scope>().is_err());
    }
}
