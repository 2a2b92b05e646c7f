//! Interprets a whole Pod: combines mesh, probes, addresses and names. [`ParsedPod::select`] then decides what is served.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::inbound;
use crate::mesh::{annotation, consul_proxy_uid, mesh_of, proxy_runs};
use crate::probers::{Recovered, is_at_localhost, recover};
use crate::probes::probes;
use crate::scope::{Marks, is_virtual_machine, marks};
use crate::select::NotServed;
use crate::skipped::{SkipReason, SkippedProbe};
use crate::state::{PodState, state_of};
use model::bounds::{Quota, SKIPPED_LIMIT};
use model::{self, Mesh, PodId, Probe, ProbeMode};

/// Annotation of a mirror pod: the UID that the kubelet uses for the static pod.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Annotation of mirror pods only (kubernetes pkg/kubelet/types/pod_update.go).
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// An interpreted Pod. Does not depend on the daemon's settings or on the pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedPod {
    /// Its name and UID; the UID may be derived from the name, see [`parse_pod`].
    pub id: PodId,
    /// What could be served; `None` if it has no probes, or for the reason `never`.
    pub pod: Option<Arc<model::Pod>>,
    /// Why it is not served under any settings.
    pub never: Option<NotServed>,
    /// Whether it is in a known mesh.
    pub meshed: bool,
    /// Whether its app runs in a virtual machine.
    pub guest: bool,
    /// What its labels and annotations set.
    pub marks: Marks,
    /// Probes that can't be served.
    pub skipped: Vec<SkippedProbe>,
    /// Parts of the Pod that could not be read.
    pub warnings: Vec<String>,
    /// Whether its mesh's container runs; `None` if its status does not show it.
    pub mesh_runs: Option<bool>,
    /// What the kubelet has done with it.
    pub state: PodState,
}

impl ParsedPod {
    fn new(id: PodId, warnings: Vec<String>) -> Self {
        Self {
            id,
            pod: None,
            never: None,
            meshed: false,
            guest: false,
            marks: Marks::default(),
            skipped: Vec::new(),
            warnings,
            mesh_runs: None,
            state: PodState::default(),
        }
    }

    /// Whether our webhook has rewritten its probes, so that only the daemon answers them.
    pub fn is_rewritten_by_us(&self) -> bool {
        let rewritten = self.pod.as_ref().and_then(|pod| pod.rewritten.as_ref());
        rewritten.is_some_and(|rewritten| rewritten.mode == ProbeMode::Rewrite)
    }

    /// Limits the list of skipped probes.
    fn limit_skipped(&mut self) {
        let all = self.skipped.len();
        if all > SKIPPED_LIMIT {
            self.skipped.truncate(SKIPPED_LIMIT);
            self.skipped.shrink_to_fit();
            self.warnings.push(format!(
                "{} more of its probes are not served",
                all - SKIPPED_LIMIT
            ));
        }
    }

    fn never(mut self, why: NotServed) -> Self {
        self.never = Some(why);
        self
    }
}

/// Interprets `pod`. The UID is the one the kubelet uses (for a mirror pod the static pod's); a Pod
/// without one, from a manifest written by hand, gets a stable one derived from its name.
pub fn parse_pod(pod: &Pod) -> ParsedPod {
    let mut warnings = Vec::new();
    let id = pod_id(pod, &mut warnings);
    let nameless = id.name.is_empty();
    let mut parsed = ParsedPod::new(id, warnings);
    parsed.state = state_of(pod);
    if nameless {
        return parsed.never(NotServed::NoName);
    }
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network);
    if host_network == Some(true) {
        return parsed.never(NotServed::HostNetwork);
    }
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return parsed.never(NotServed::Ended);
    }

    let ips = addresses(pod, &mut parsed.warnings);
    let mesh = mesh_of(pod);
    parsed.meshed = mesh.is_some();
    parsed.guest = is_virtual_machine(pod);
    parsed.mesh_runs = proxy_runs(pod);
    let (declared, skipped) = probes(pod, &ips);
    parsed.skipped = skipped;
    let mut recovered = recover(pod, declared, &ips);
    parsed.skipped.append(&mut recovered.skipped);
    parsed.skipped.append(&mut bound(&mut recovered));
    parsed.limit_skipped();
    let Recovered {
        native,
        rewritten,
        mut warnings,
        ..
    } = recovered;
    parsed.warnings.append(&mut warnings);
    parsed.marks = marks(pod, &mut parsed.warnings);
    if native.is_empty() && rewritten.is_none() {
        return parsed;
    }
    let mesh = mesh.unwrap_or(Mesh::Unknown);
    let proxy_uid = (mesh == Mesh::Consul).then(|| {
        let (uid, warning) = consul_proxy_uid(pod);
        parsed.warnings.extend(warning);
        uid
    });
    parsed.pod = Some(Arc::new(model::Pod {
        id: parsed.id.clone(),
        ips,
        ips_are_old: false,
        mesh,
        inbound: inbound::of(pod, mesh),
        localhost: mesh == Mesh::Istio && is_at_localhost(pod),
        http: parsed.marks.http,
        proxy_uid,
        probes: native,
        rewritten,
        netns: None,
    }));
    parsed
}

/// Removes probes beyond the quota of one pod, so that no pod uses up memory or map entries that all pods share.
fn bound(recovered: &mut Recovered) -> Vec<SkippedProbe> {
    let mut kept = Quota::default();
    let mut skipped = Vec::new();
    let mut fits = |path: &str, probe: &Probe| {
        let fits = kept.one_more(path.len() + probe.action.text_len());
        if !fits {
            skipped.push(SkippedProbe {
                container: probe.container.clone(),
                kind: probe.kind,
                why: SkipReason::TooMany,
            });
        }
        fits
    };
    if let Some(rewritten) = &mut recovered.rewritten {
        rewritten
            .originals
            .retain(|(path, probe)| fits(path, probe));
    }
    recovered.native.retain(|probe| fits("", probe));
    skipped
}

fn pod_id(pod: &Pod, warnings: &mut Vec<String>) -> PodId {
    let meta = &pod.metadata;
    let namespace = meta
        .namespace
        .clone()
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or_else(|| "default".to_owned());
    let name = meta.name.clone().unwrap_or_default();
    // Like the kubelet, uses the hash only for mirror pods, because on other pods it is an arbitrary text of
    // the pod's author.
    let hash = annotation(pod, CONFIG_MIRROR).and_then(|_| annotation(pod, CONFIG_HASH));
    let uid = hash
        .or(meta.uid.as_deref())
        .filter(|uid| !uid.is_empty())
        .filter(|uid| {
            let usable = is_uid(uid);
            if !usable {
                warnings.push(format!(
                    "UID {uid:?} is invalid: one derived from the name is used instead"
                ));
            }
            usable
        })
        .map_or_else(|| derived_uid(&namespace, &name), str::to_owned);
    PodId {
        namespace,
        name,
        uid,
    }
}

/// UIDs become parts of cgroup paths, so they must not contain `/` or `..`.
fn is_uid(uid: &str) -> bool {
    uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// A UID from the FNV-1a hash of the name, which is the same in every process and release.
fn derived_uid(namespace: &str, name: &str) -> String {
    let hash = format!("{namespace}/{name}")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| {
            (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("manifest-{hash:016x}")
}

/// `status.podIPs`, and `status.podIP` if it is not among them, each once.
fn addresses(pod: &Pod, warnings: &mut Vec<String>) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let mut ips = Vec::new();
    let listed = status.pod_ips.iter().flatten().map(|pod_ip| &pod_ip.ip);
    for text in status.pod_ip.iter().chain(listed) {
        match text.parse::<IpAddr>() {
            Ok(ip) if is_pod_address(ip.to_canonical()) => {
                if !ips.contains(&ip.to_canonical()) {
                    ips.push(ip.to_canonical());
                }
            }
            _ if text.is_empty() => {}
            _ => {
                let warning = format!("status.podIPs: {text:?} is not a pod address");
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
            }
        }
    }
    ips
}

/// The kubelet reaches itself at a loopback address; unspecified and multicast addresses belong to no pod.
fn is_pod_address(ip: IpAddr) -> bool {
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

#[cfg(test)]
mod tests;
