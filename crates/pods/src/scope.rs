//! What the daemon does with a pod's probes: its own settings, and the labels and annotations that override them.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use k8s_openapi::api::core::v1::Pod;
use model::HttpBy;
use serde::{Deserialize, Serialize};

use crate::mesh::annotation;

/// Label of a pod or its namespace: what the daemon does with the pod's probes, a [`Mode`].
pub const MODE: &str = "probe-handler.io/mode";

/// Annotation of a pod or its namespace: what serves the pod's plaintext HTTP probes, `"handler"` or `"kernel"`.
pub const HTTP: &str = "probe-handler.io/http";

/// Label of virtual machines' pods, with value [`VIRT_LAUNCHER`] (kubevirt staging/src/kubevirt.io/api/core/v1
/// `AppLabel`).
pub const KUBEVIRT: &str = "kubevirt.io";
/// See [`KUBEVIRT`].
pub const VIRT_LAUNCHER: &str = "virt-launcher";

/// What the daemon does with a pod's probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It serves them.
    #[default]
    Serve,
    /// The daemon changes nothing. It repeats the probes, and reports those whose result would change.
    Observe,
    /// Nothing.
    Off,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Serve, Self::Observe, Self::Off];

    /// Its name as a label's value and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Observe => "observe",
            Self::Off => "off",
        }
    }

    /// The mode with that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which pods the daemon's mode applies to, of those that have no label [`MODE`] on themselves or their namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Pods in a known mesh.
    #[default]
    Meshed,
    /// No pods, so only those with the label are served.
    Labeled,
    /// All pods.
    All,
}

impl Scope {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meshed => "meshed",
            Self::Labeled => "labeled",
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
#[error("unknown scope {0:?}, must be meshed, labeled or all")]
pub struct UnknownScope(String);

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        [Self::Meshed, Self::Labeled, Self::All]
            .into_iter()
            .find(|scope| scope.name() == s)
            .ok_or_else(|| UnknownScope(s.to_owned()))
    }
}

/// What labels and annotations of a pod or a namespace set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Marks {
    /// The value of [`MODE`].
    pub mode: Option<Mode>,
    /// The value of [`HTTP`].
    pub http: Option<HttpBy>,
}

impl Marks {
    /// Reads label `mode` and annotation `http`; appends to `problems` what is ignored because it is invalid.
    pub fn read(mode: Option<&str>, http: Option<&str>, problems: &mut Vec<String>) -> Self {
        let marks = Self {
            mode: mode.and_then(Mode::named),
            http: http.and_then(HttpBy::named),
        };
        if let (Some(value), None) = (mode, marks.mode) {
            problems.push(format!(
                "label {MODE} is {value:?}, must be \"serve\", \"observe\" or \"off\"; ignored"
            ));
        }
        if let (Some(value), None) = (http, marks.http) {
            problems.push(format!(
                "annotation {HTTP} is {value:?}, must be \"handler\" or \"kernel\"; ignored"
            ));
        }
        marks
    }

    /// The marks that apply to a pod with these marks in a namespace with the marks `namespace`.
    pub fn or(self, namespace: Self) -> Self {
        Self {
            mode: self.mode.or(namespace.mode),
            http: self.http.or(namespace.http),
        }
    }
}

/// The marks of `pod`; appends to `problems` what is ignored, and why.
pub fn marks(pod: &Pod, problems: &mut Vec<String>) -> Marks {
    if annotation(pod, MODE).is_some() {
        problems.push(format!("{MODE} is an annotation, must be a label; ignored"));
    }
    Marks::read(label(pod, MODE), annotation(pod, HTTP), problems)
}

/// The value of `pod`'s label `name`.
fn label<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let labels = pod.metadata.labels.as_ref()?;
    labels.get(name).map(String::as_str)
}

/// Whether the app runs in a virtual machine. KubeVirt's packet filters redirect the pod's traffic into it:
/// the app has no sockets in the pod, so every port would look closed.
pub fn is_virtual_machine(pod: &Pod) -> bool {
    label(pod, KUBEVIRT) == Some(VIRT_LAUNCHER)
}

/// What decides about a pod in addition to its own marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The daemon's scope.
    pub scope: Scope,
    /// The daemon's mode.
    pub mode: Mode,
    /// The marks of the pod's namespace.
    pub namespace: Marks,
}

impl Selection {
    /// What to do with the probes of a pod with mode `own`: its own label decides, else its namespace's, else scope and
    /// mode of the daemon.
    pub fn mode_of(&self, own: Option<Mode>, meshed: bool) -> Mode {
        own.or(self.namespace.mode)
            .unwrap_or(match (self.scope, meshed) {
                (Scope::Meshed, true) | (Scope::All, _) => self.mode,
                (Scope::Meshed, false) | (Scope::Labeled, _) => Mode::Off,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_decides_then_its_namespace_then_the_daemon() {
        use Mode::{Observe, Off, Serve};
        for (scope, daemon, namespace, own, meshed, expected) in [
            (Scope::Meshed, Serve, None, None, true, Serve),
            (Scope::Meshed, Observe, None, None, true, Observe),
            (Scope::Meshed, Observe, None, None, false, Off),
            (Scope::Labeled, Serve, None, None, true, Off),
            (Scope::All, Serve, None, None, false, Serve),
            (Scope::Labeled, Serve, Some(Observe), None, false, Observe),
            (Scope::Meshed, Observe, Some(Serve), None, true, Serve),
            (Scope::All, Serve, Some(Off), None, true, Off),
            (Scope::All, Serve, Some(Serve), Some(Off), true, Off),
            (
                Scope::Labeled,
                Observe,
                Some(Off),
                Some(Serve),
                false,
                Serve,
            ),
        ] {
            let selection = Selection {
                scope,
                mode: daemon,
                namespace: Marks {
                    mode: namespace,
                    http: None,
                },
            };
            assert_eq!(
                selection.mode_of(own, meshed),
                expected,
                "{selection:?} {own:?} {meshed}"
            );
        }
    }

    #[test]
    fn a_scope_is_parsed_from_its_name() {
        for scope in [Scope::Meshed, Scope::Labeled, Scope::All] {
            assert_eq!(scope.to_string().parse(), Ok(scope));
            assert_eq!(
                scope.to_possible_value().unwrap().get_name(),
                scope.to_string()
            );
        }
        assert!("Meshed".parse::<Scope>().is_err());
    }

    #[test]
    fn a_mode_is_found_by_its_name() {
        for mode in Mode::ALL {
            assert_eq!(Mode::named(mode.name()), Some(mode));
        }
        assert_eq!(Mode::named("Serve"), None);
    }

    #[test]
    fn a_mark_that_cannot_be_read_is_reported_and_ignored() {
        let mut problems = Vec::new();
        let marks = Marks::read(Some("true"), Some("both"), &mut problems);
        assert_eq!(marks, Marks::default());
        assert_eq!(
            problems,
            [
                "label probe-handler.io/mode is \"true\", must be \"serve\", \"observe\" or \"off\"; ignored",
                "annotation probe-handler.io/http is \"both\", must be \"handler\" or \"kernel\"; ignored"
            ]
        );
    }
}
