//! Decides what is done with the probes of a parsed Pod: the second step, which repeats when its namespace changes.

use std::sync::Arc;

use model::PodId;
use serde::Serialize;

use crate::parse::ParsedPod;
use crate::scope::{KUBEVIRT, MODE, Mode, Selection, VIRT_LAUNCHER};
use crate::skipped::SkippedProbe;
use crate::state::PodState;

/// A Pod, and what is done with its probes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SelectedPod {
    /// As in [`ParsedPod::id`].
    pub id: PodId,
    /// What to serve, if anything.
    pub pod: Option<Arc<model::Pod>>,
    /// What to observe, if anything.
    #[serde(skip)]
    pub observed: Option<Arc<model::Pod>>,
    /// Why nothing is served.
    pub not_served: Option<NotServed>,
    /// Probes that can't be served.
    pub skipped: Vec<SkippedProbe>,
    /// Parts of the Pod that could not be read, and differences from what its author may expect.
    pub warnings: Vec<String>,
    /// As in [`ParsedPod::mesh_runs`].
    pub mesh_runs: Option<bool>,
    /// As in [`ParsedPod::state`].
    pub state: PodState,
}

/// Why no probe of a pod is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum NotServed {
    /// It has no `metadata.name`.
    #[error("metadata.name is missing")]
    NoName,
    /// Its address is the node's.
    #[error("it is in the node's network namespace (hostNetwork)")]
    HostNetwork,
    /// Its phase is Succeeded or Failed: the kubelet does not probe it.
    #[error("its phase is Succeeded or Failed")]
    Ended,
    /// Neither its labels nor the scope select it.
    #[error("neither label {MODE} nor the daemon's scope selects it")]
    OutOfScope,
    /// It or its namespace has label `probe-handler.io/mode: off`.
    #[error("label {MODE} is \"off\" on it or its namespace")]
    Off,
    /// Its mode is [`Mode::Observe`].
    #[error("its mode is observe: its probes are repeated and compared, and go through the mesh")]
    Observed,
    /// Its app runs in a virtual machine and has no sockets in the pod's network namespace.
    #[error(
        "its app runs in a virtual machine (label {KUBEVIRT}={VIRT_LAUNCHER}); to serve it anyway, set label \
         {MODE}: serve on the pod"
    )]
    Guest,
    /// It has no probes that can be served.
    #[error("it has no probes to serve")]
    NoProbes,
}

impl ParsedPod {
    /// What is done with its probes under `selection`.
    pub fn select(&self, selection: &Selection) -> SelectedPod {
        let mut selected = SelectedPod {
            id: self.id.clone(),
            pod: None,
            observed: None,
            not_served: self.never,
            skipped: self.skipped.clone(),
            warnings: self.warnings.clone(),
            mesh_runs: self.mesh_runs,
            state: self.state.clone(),
        };
        if self.never.is_some() {
            return selected;
        }
        let set = self.marks.or(selection.namespace);
        let mode = selection.mode_of(self.marks.mode, self.meshed);
        let guest = self.guest && self.marks.mode != Some(Mode::Serve);
        let why = match mode {
            Mode::Off if set.mode == Some(Mode::Off) => Some(NotServed::Off),
            Mode::Off => Some(NotServed::OutOfScope),
            _ if guest => Some(NotServed::Guest),
            _ if self.pod.is_none() => Some(NotServed::NoProbes),
            Mode::Observe => Some(NotServed::Observed),
            Mode::Serve => None,
        };
        let Some(pod) = &self.pod else {
            selected.not_served = why;
            return selected;
        };
        let pod = match set.http == pod.http {
            true => Arc::clone(pod),
            false => Arc::new(model::Pod {
                http: set.http,
                ..model::Pod::clone(pod)
            }),
        };
        // Only the daemon answers on the rewrite port, so those probes are served in every mode.
        if self.is_rewritten_by_us() {
            let native = matches!(why, None | Some(NotServed::OutOfScope)) && !guest;
            if why == Some(NotServed::Observed) && !pod.probes.is_empty() {
                selected.observed = Some(Arc::new(model::Pod {
                    rewritten: None,
                    ..model::Pod::clone(&pod)
                }));
            }
            if let Some(why @ (NotServed::Off | NotServed::Observed)) = why {
                selected.warnings.push(format!(
                    "{why}; but our webhook has rewritten probes: those are served, the others are not"
                ));
            }
            selected.pod = Some(match native {
                true => pod,
                false => Arc::new(model::Pod {
                    probes: Vec::new(),
                    ..model::Pod::clone(&pod)
                }),
            });
            return selected;
        }
        match why {
            None => selected.pod = Some(pod),
            Some(NotServed::Observed) => selected.observed = Some(pod),
            Some(_) => {}
        }
        selected.not_served = why;
        selected
    }
}
