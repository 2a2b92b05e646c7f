//! Which pods and probes `status` shows.

use crate::status::{PodStatus, Status};

/// A selection of pods and probes. The default selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only the pods of this namespace.
    pub namespace: Option<String>,
    /// Only the pods with this name.
    pub pod: Option<String>,
    /// Only probes whose last result is a failure, and pods in scope that are not served.
    pub failing: bool,
    /// Only what is observed.
    pub changes: bool,
}

/// What a filter has selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selected {
    /// Something.
    Some,
    /// Nothing, with the reason. This is not a failure.
    Nothing(String),
    /// The one pod that was requested does not exist.
    NoSuchPod(String),
}

impl Filter {
    /// The filter for `pod` (NAMESPACE/POD, or the name of a pod in `namespace`).
    ///
    /// # Errors
    /// Why the name is not valid.
    pub fn new(pod: Option<&str>, namespace: Option<&str>, failing: bool) -> Result<Self, String> {
        let (namespace, pod) = match pod {
            None => (namespace, None),
            Some(pod) => {
                let (namespace, name) = pod_name(pod, namespace)?;
                (Some(namespace), Some(name))
            }
        };
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            pod: pod.map(str::to_owned),
            failing,
            changes: false,
        })
    }

    /// The same, but only for what is observed if `changes`.
    pub fn changes(self, changes: bool) -> Self {
        Self { changes, ..self }
    }

    /// Whether it selects everything.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Removes from `status` what is not selected, and describes the rest.
    pub fn apply(&self, status: &mut Status) -> Selected {
        self.selected(self.retain(status), Place::Node)
    }

    /// Whether it selects the pod `name` of `namespace`.
    pub fn is_named(&self, namespace: &str, name: &str) -> bool {
        self.namespace.as_deref().is_none_or(|of| of == namespace)
            && self.pod.as_deref().is_none_or(|pod| pod == name)
    }

    /// Removes from `status` what is not selected.
    pub fn retain(&self, status: &mut Status) -> Found {
        let is_named = |namespace: &str, name: &str| self.is_named(namespace, name);
        status
            .pods
            .retain(|pod| is_named(&pod.namespace, &pod.name));
        status
            .not_served
            .retain(|pod| is_named(&pod.namespace, &pod.name));
        status
            .observed
            .retain(|pod| is_named(&pod.namespace, &pod.name));
        let is_known = !status.pods.is_empty() || !status.not_served.is_empty();
        if self.failing {
            status.not_served.clear();
            status.pods.retain_mut(keep_failing);
        }
        Found {
            is_known,
            has_pods: !status.pods.is_empty(),
            has_observed: !status.observed.is_empty(),
        }
    }

    /// Describes what remains of the states at `place`.
    pub fn selected(&self, found: Found, place: Place) -> Selected {
        let of = match (&self.namespace, &self.pod) {
            (Some(namespace), Some(pod)) if !found.is_known => {
                return Selected::NoSuchPod(place.no_such_pod(namespace, pod));
            }
            (Some(namespace), Some(pod)) => format!(" of pod {namespace}/{pod}"),
            (Some(namespace), None) => format!(" of namespace {namespace}"),
            (None, _) => String::new(),
        };
        if self.changes {
            return match (found.has_observed, of.is_empty()) {
                (true, _) => Selected::Some,
                (false, true) => Selected::Nothing(super::changes::NOTHING_OBSERVED.to_owned()),
                (false, false) => Selected::Nothing(format!("no pod{of} is observed")),
            };
        }
        match (found.is_known, found.has_pods, self.failing) {
            (false, ..) if self.is_all() => Selected::Some,
            (false, ..) => Selected::Nothing(format!("no pod{of} is on {}", place.name())),
            (true, false, true) => Selected::Nothing(format!("no probe{of} fails")),
            _ => Selected::Some,
        }
    }
}

/// What remains of a state after filtering.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Pods with the namespace and name exist.
    is_known: bool,
    has_pods: bool,
    has_observed: bool,
}

impl Found {
    /// What remains of either state.
    pub fn or(self, other: Self) -> Self {
        Self {
            is_known: self.is_known | other.is_known,
            has_pods: self.has_pods | other.has_pods,
            has_observed: self.has_observed | other.has_observed,
        }
    }
}

/// The source of the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The daemon of this node.
    Node,
    /// The daemons of several nodes.
    Nodes,
}

impl Place {
    const fn name(self) -> &'static str {
        match self {
            Self::Node => "this node",
            Self::Nodes => "the nodes that answered",
        }
    }

    fn no_such_pod(self, namespace: &str, pod: &str) -> String {
        match self {
            Self::Node => format!(
                "the daemon on this node has no pod {namespace}/{pod}: is it on another node? 'probe-handler status -n \
                 {namespace}' lists the pods of that namespace here"
            ),
            Self::Nodes => format!(
                "no daemon that answered has a pod {namespace}/{pod}: 'kubectl probes get -n {namespace}' lists the pods of \
                 that namespace"
            ),
        }
    }
}

/// Namespace and name of `pod`: NAMESPACE/POD, or the name of a pod in `namespace`.
///
/// # Errors
/// Why it is not valid.
pub fn pod_name<'a>(
    pod: &'a str,
    namespace: Option<&'a str>,
) -> Result<(&'a str, &'a str), String> {
    // Names of the Kubernetes API are DNS names.
    let is_name = |name: &str| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        !name.is_empty() && name.bytes().all(is_part)
    };
    let named = match (pod.split_once('/'), namespace) {
        (Some((of, _)), Some(namespace)) if namespace != of => {
            return Err(format!(
                "the pod's namespace {of:?} differs from --namespace: set one of them"
            ));
        }
        (Some(named), _) => Some(named),
        (None, namespace) => namespace.map(|namespace| (namespace, pod)),
    };
    named
        .filter(|(namespace, name)| is_name(namespace) && is_name(name))
        .ok_or_else(|| {
            format!("invalid pod {pod:?}; expected NAMESPACE/POD, or POD with --namespace")
        })
}

/// Removes the probes that do not fail; returns whether to keep the pod.
fn keep_failing(pod: &mut PodStatus) -> bool {
    pod.skipped.clear();
    pod.probes.retain(|probe| {
        let last = probe.last.as_ref();
        last.is_some_and(|last| last.outcome == "failure")
    });
    !pod.probes.is_empty() || pod.trouble().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{last, pod, probe, status};
    use crate::status::ProbeStatus;

    fn names(status: &Status) -> Vec<String> {
        let pods = status.pods.iter().map(|pod| pod.name.clone());
        pods.chain(status.not_served.iter().map(|pod| pod.name.clone()))
            .collect()
    }

    fn filter(pod: Option<&str>, namespace: Option<&str>, failing: bool) -> Filter {
        Filter::new(pod, namespace, failing).expect("valid")
    }

    #[test]
    fn a_pod_is_named_with_its_namespace() {
        let both = filter(Some("shop/cart-0"), None, false);
        assert_eq!(both, filter(Some("cart-0"), Some("shop"), false));
        assert_eq!(both, filter(Some("shop/cart-0"), Some("shop"), false));
        for (pod, namespace) in [
            ("cart-0", None),
            ("/cart-0", None),
            ("shop/", None),
            ("", Some("shop")),
            ("shop/cart-0", Some("other")),
        ] {
            let error = Filter::new(Some(pod), namespace, false);
            assert!(error.is_err(), "{pod:?} {namespace:?}");
        }
    }

    #[test]
    fn namespace_and_pod_select_served_pods_and_others() {
        let mut one = status();
        let found = filter(Some("shop/cart-0"), None, false).apply(&mut one);
        assert_eq!(
            (found, names(&one)),
            (Selected::Some, vec!["cart-0".to_owned()])
        );
        let mut host = status();
        let found = filter(None, Some("kube-system"), false).apply(&mut host);
        assert_eq!(
            (found, names(&host)),
            (Selected::Some, vec!["proxy".to_owned()])
        );
    }

    #[test]
    fn failing_selects_failures_and_pods_in_scope_that_are_not_served() {
        let mut status = status();
        status.pods.push(crate::status::PodStatus {
            probes: vec![
                probe("liveness", "http", 80),
                ProbeStatus {
                    last: last("failure", "timed_out", None),
                    ..probe("readiness", "http", 80)
                },
            ],
            ..pod("late")
        });
        assert_eq!(filter(None, None, true).apply(&mut status), Selected::Some);
        assert_eq!(names(&status), ["web-0", "late"]);
        assert_eq!(status.pods[1].probes.len(), 1);
    }

    #[test]
    fn a_filter_that_matches_nothing_says_so() {
        let applied = |filter: Filter| filter.apply(&mut status());
        let nothing = applied(filter(None, Some("empty"), false));
        assert_eq!(
            nothing,
            Selected::Nothing("no pod of namespace empty is on this node".to_owned())
        );
        let nothing = applied(filter(Some("shop/cart-0"), None, true));
        assert_eq!(
            nothing,
            Selected::Nothing("no probe of pod shop/cart-0 fails".to_owned())
        );
        let missing = applied(filter(Some("shop/gone"), None, true));
        assert!(matches!(missing, Selected::NoSuchPod(why) if why.contains("shop/gone")));
        assert_eq!(applied(Filter::default()), Selected::Some);
    }
}
