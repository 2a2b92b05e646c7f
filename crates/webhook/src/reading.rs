//! A Pod as the webhook reads it: the received JSON, the parsed Pod, and what was rewritten before.

use std::collections::{BTreeMap, HashSet};

use json_patch::jsonptr::PointerBuf;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::annotations::REWRITE_BEFORE;
use super::injection::is_kept_out;
use model::{Probe, ProbeMode};
use pods::mesh::annotation;
use pods::probers::{self, PROBES};
use pods::probes::{self, Declared, tcp_action};
use pods::scope::{Mode, is_virtual_machine, marks};
use pods::skipped::SkipReason;

/// Annotation of mirror pods, which represent in the API server a pod that the kubelet reads from a file
/// (kubernetes pkg/kubelet/types/pod_update.go). The kubelet runs the file's probes, not the mirror pod's.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What was done to a pod before this admission.
#[derive(Clone, Debug, PartialEq)]
pub enum Before {
    /// Nothing.
    Untouched,
    /// Our webhook has rewritten probes of it.
    Ours {
        /// The port that they use.
        port: u16,
        /// Annotation `probe-handler.io/probes`.
        originals: Map<String, Value>,
    },
    /// Istio's injector has rewritten probes of it.
    Istios,
    /// It has annotations of ours that do not match its probes; the text describes the mismatch.
    Odd(String),
}

/// A Pod.
pub struct Reading<'a> {
    /// As received, with unknown fields.
    pub raw: &'a Value,
    /// As parsed.
    pub pod: Pod,
    /// What was done to it before.
    pub before: Before,
}

impl<'a> Reading<'a> {
    /// Reads a Pod or a Pod template.
    ///
    /// # Errors
    /// What can't be parsed, and where.
    pub fn new(raw: &'a Value) -> Result<Self, String> {
        let pod = Pod::deserialize(raw).map_err(|error| {
            // Parse again to locate the error. This is slow, so it is done only after a failure.
            match serde_path_to_error::deserialize::<_, Pod>(raw) {
                Err(placed) => placed.to_string(),
                Ok(_) => error.to_string(),
            }
        })?;
        let before = before(&pod);
        Ok(Self { raw, pod, before })
    }

    /// Whether the Pod can have probes to rewrite. Excluded are pods of the host network (their address is
    /// the node's), Windows pods, mirror pods, virtual machines without the label that selects them, pods whose
    /// label prevents the daemon from serving them, and pods that their author keeps out of their mesh.
    /// `namespace` is that of a pod that does not name its own.
    pub fn concerns_us(&self, namespace: Option<&str>) -> bool {
        let Some(spec) = &self.pod.spec else {
            return false;
        };
        let windows = spec.os.as_ref().is_some_and(|os| os.name == "windows")
            || spec.node_selector.as_ref().is_some_and(|selector| {
                selector.get("kubernetes.io/os").map(String::as_str) == Some("windows")
            });
        let mode = marks(&self.pod, &mut Vec::new()).mode;
        let guest = is_virtual_machine(&self.pod) && mode != Some(Mode::Serve);
        let own = self.pod.metadata.namespace.as_deref();
        let namespace = own.filter(|own| !own.is_empty()).or(namespace);
        spec.host_network != Some(true)
            && !windows
            && !guest
            && !matches!(mode, Some(Mode::Observe | Mode::Off))
            && !is_kept_out(&self.pod, namespace)
            && annotation(&self.pod, MIRROR).is_none()
    }

    /// Which of the labels and annotations that select the pod are ignored, and why.
    pub fn ignored_marks(&self) -> Vec<String> {
        let mut ignored = Vec::new();
        let _marks = marks(&self.pod, &mut ignored);
        ignored
    }

    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        annotation(&self.pod, key)
    }

    /// All annotations.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.pod.metadata.annotations.clone().unwrap_or_default()
    }

    /// All probes and hooks, in the order of the containers.
    pub fn declared(&self) -> Vec<Declared<'_>> {
        probes::declared(&self.pod)
    }

    /// A probe that may be rewritten. The Pod has no addresses yet, so any `host` is foreign. A
    /// `tcpSocket` hook, which the kubelet would reject, works once it is rewritten.
    ///
    /// # Errors
    /// Why it is not rewritten.
    pub fn parse_pod(&self, declared: &Declared<'_>) -> Result<Probe, SkipReason> {
        match (declared.parse_pod(&self.pod, &[]), declared.tcp) {
            (Err(SkipReason::TcpHook), Some(tcp)) => Ok(Probe {
                container: declared.container.name.clone(),
                kind: declared.kind,
                action: tcp_action(tcp, declared.container, &[])?,
                timeout: None,
                schedule: declared.schedule,
            }),
            (parsed, _) => parsed,
        }
    }

    /// The rewritten paths that an `httpGet` uses, on any port.
    pub fn probed(&self) -> HashSet<String> {
        self.declared()
            .iter()
            .filter_map(|declared| self.parse_pod(declared).ok())
            .filter_map(|probe| probers::rewritten_path(&probe).map(str::to_owned))
            .collect()
    }

    /// The position of a probe or hook in the JSON; `None` only if it belongs to another Pod.
    pub fn place(&self, declared: &Declared<'_>) -> Option<PointerBuf> {
        let spec = self.pod.spec.as_ref()?;
        let index = |list: &[k8s_openapi::api::core::v1::Container]| {
            list.iter()
                .position(|container| std::ptr::eq(container, declared.container))
        };
        let init = spec.init_containers.as_deref().unwrap_or_default();
        let (list, index) = index(init)
            .map(|index| ("initContainers", index))
            .or_else(|| index(&spec.containers).map(|index| ("containers", index)))?;
        let mut place = PointerBuf::from_tokens(["spec", list]);
        place.push_back(index);
        for field in declared.kind.field().split('.') {
            place.push_back(field);
        }
        Some(place)
    }
}

fn before(pod: &Pod) -> Before {
    let (declared, _) = probes::probes(pod, &[]);
    let recovered = probers::recover(pod, declared, &[]);
    let way = recovered.rewritten.as_ref().map(|r| (r.mode, r.port));
    let ours = annotation(pod, PROBES);
    match (way, ours) {
        (Some((ProbeMode::Rewrite, port)), Some(json)) => match serde_json::from_str(json) {
            Ok(originals) => Before::Ours { port, originals },
            Err(error) => Before::Odd(format!("annotation {PROBES}: {error}")),
        },
        (_, Some(_)) => {
            let warnings: String = recovered
                .warnings
                .iter()
                .map(|warning| format!("; {warning}"))
                .collect();
            Before::Odd(format!(
                "annotation {PROBES} is set, but no probe is rewritten to a path in it{warnings}"
            ))
        }
        (Some((ProbeMode::Takeover, _)), None) => Before::Istios,
        _ if annotation(pod, REWRITE_BEFORE).is_some() => Before::Odd(format!(
            "annotation {REWRITE_BEFORE} is set, but no probe is rewritten"
        )),
        _ => Before::Untouched,
    }
}
