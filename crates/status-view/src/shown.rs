//! The states of one daemon, or of daemons on several nodes, to be shown in one table.

use crate::status::{OtherPod, PodStatus, Status};

/// A daemon's state, and the name of its node where several are shown.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// The node; `None` if only one daemon is shown, whose node is not named.
    pub node: Option<&'a str>,
    /// The state.
    pub status: &'a Status,
}

/// The pods in scope with their nodes. Those of several nodes are sorted by namespace and name, so that the pods of a workload
/// are together.
pub fn pods<'a>(shown: &[Shown<'a>]) -> Vec<(Option<&'a str>, &'a PodStatus)> {
    let pods = shown.iter().flat_map(|shown| {
        let node = shown.node;
        shown.status.pods.iter().map(move |pod| (node, pod))
    });
    let mut pods: Vec<_> = pods.collect();
    if has_nodes(shown) {
        pods.sort_by_key(|(node, pod)| (&pod.namespace, &pod.name, *node));
    }
    pods
}

/// The other pods, likewise.
pub fn not_served<'a>(shown: &[Shown<'a>]) -> Vec<(Option<&'a str>, &'a OtherPod)> {
    let pods = shown.iter().flat_map(|shown| {
        let node = shown.node;
        shown.status.not_served.iter().map(move |pod| (node, pod))
    });
    let mut pods: Vec<_> = pods.collect();
    if has_nodes(shown) {
        pods.sort_by_key(|(node, pod)| (&pod.namespace, &pod.name, *node));
    }
    pods
}

/// Whether the table has a column for the node.
pub fn has_nodes(shown: &[Shown<'_>]) -> bool {
    shown.iter().any(|shown| shown.node.is_some())
}
