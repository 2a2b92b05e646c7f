//! Builds the state that `probe-handler status` shows.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use probe_handler_common::programs;

use super::kernel_path::Path;
use super::kubelet_task::Attachment;
use super::registry_task::PodsState;
use crate::cli::config::AgentConfig;
use crate::observe::status::{
    CanaryState, CanaryStatus, HookStatus, KubeletStatus, NetnsStatus, PathStatus, PodStatus,
    Refusal, SkippedProbe, SourceStatus, Status, counters, route_rows,
};
use kernel::canary::Canary;
use kernel::maps::CounterMap;
use pods::parse::ParsedPod;
use reconcile::registry::{Obstacle, PodEntry};
use support::build::VERSION;
use support::missing::Missing;
use support::readiness::Readiness;

/// A mesh that has not listened for this long, although its container runs, is a problem.
const SILENT: Duration = Duration::from_secs(60);

/// The sources of the state.
pub struct Reporter {
    /// When the daemon started.
    pub started: Instant,
    /// Its configuration.
    pub config: AgentConfig,
    /// The conditions that it waits for.
    pub readiness: Readiness,
    /// The parts that it runs without.
    pub missing: Missing,
    /// Programs and kubelet.
    pub attachment: Arc<Mutex<Attachment>>,
    /// Pods.
    pub shared: Arc<Mutex<PodsState>>,
    /// The addresses of the handler.
    pub handler: Vec<SocketAddr>,
    /// The counters of the eBPF programs.
    pub counters: Arc<CounterMap>,
    /// A problem of the kernel path.
    pub kernel_path_trouble: Option<String>,
}

impl Reporter {
    /// The current state.
    pub fn report(&self) -> Status {
        let attachment = self.attachment.lock();
        let (attached, _) = attachment.programs.attached();
        let hooks = attachment
            .programs
            .ids()
            .into_iter()
            .map(|(program, id)| HookStatus {
                program: program.to_owned(),
                attached: attached.contains(&program),
                program_id: Some(id),
            })
            .collect();
        let kubelet = self.kubelet(&attachment, attached.len() == programs::ATTACH_ORDER.len());
        let refusal = if attachment.programs.refuses_with_econnrefused() {
            Refusal::Econnrefused
        } else {
            Refusal::Eperm
        };
        let trouble = attachment.trouble.clone();
        drop(attachment);

        let shared = self.shared.lock();
        Status {
            version: VERSION.to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            state: self.readiness.state(),
            pending: self.readiness.pending(),
            missing: self.missing.parts(),
            kubelet,
            hooks,
            refusal,
            handler: self.handler.clone(),
            counters: counters(self.counters.read()),
            source: SourceStatus {
                kind: self.config.pods.to_string(),
                problems: shared
                    .problems
                    .iter()
                    .cloned()
                    .chain(trouble)
                    .chain(self.kernel_path_trouble.clone())
                    .chain(failed_endpoints(shared.registry.failed()))
                    .collect(),
            },
            pods: pods(&shared),
        }
    }

    fn kubelet(&self, attachment: &Attachment, all_attached: bool) -> KubeletStatus {
        let kubelet = attachment.kubelet.as_ref();
        KubeletStatus {
            names: self.config.kubelet.names.clone(),
            pid: kubelet.and_then(|kubelet| kubelet.pid),
            cgroup: kubelet.map(|kubelet| kubelet.cgroup.display().to_string()),
            attached: all_attached && kubelet.is_some(),
            attached_age_ms: attachment
                .since
                .filter(|_| kubelet.is_some())
                .map(|since| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)),
            process_filter: kubelet.and_then(|kubelet| kubelet.filter),
            shared_with: kubelet
                .map(|kubelet| u32::try_from(kubelet.shared_with).unwrap_or(u32::MAX))
                .unwrap_or_default(),
        }
    }
}

fn failed_endpoints(failed: usize) -> Option<String> {
    (failed > 0).then(|| {
        format!(
            "{failed} endpoints could not be added to the kernel's map or removed from it, so their probes go through \
             the mesh: raise --endpoints-capacity if it is too small; the log lists the endpoints"
        )
    })
}

fn pods(shared: &PodsState) -> Vec<PodStatus> {
    let now = Instant::now();
    let parsed = shared.parsed.iter();
    let parsed: HashMap<&str, &ParsedPod> = parsed
        .map(|pod| (pod.id.uid.as_str(), pod.as_ref()))
        .collect();
    let mut pods: Vec<PodStatus> = shared
        .registry
        .pods()
        .values()
        .map(|entry| {
            let id = &entry.pod.id;
            PodStatus {
                namespace: id.namespace.clone(),
                name: id.name.clone(),
                uid: id.uid.clone(),
                mesh: entry.pod.mesh.name().to_owned(),
                addresses: entry.addresses().to_vec(),
                conflicts: shared.registry.conflicts(entry),
                netns: netns(entry),
                obstacle: match &entry.obstacle {
                    Some(Obstacle::Costly(why) | Obstacle::LoDown(why)) => Some(why.clone()),
                    _ => None,
                },
                canary: canary(shared, &id.uid),
                warnings: warnings(
                    shared.canaries.get(&id.uid),
                    parsed.get(id.uid.as_str()).and_then(|pod| pod.mesh_runs),
                    now,
                ),
                path: path(shared, &id.uid),
                skipped: parsed
                    .get(id.uid.as_str())
                    .map_or_else(Vec::new, |pod| skipped(pod)),
                probes: route_rows(&entry.routes.routes(), now),
            }
        })
        .collect();
    pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    pods
}

fn netns(entry: &PodEntry) -> NetnsStatus {
    match (&entry.placement, &entry.obstacle) {
        (Some(placement), _) => NetnsStatus::Known {
            inode: placement.netns.inode,
            nsid: Some(placement.netns_id),
        },
        (
            None,
            Some(
                Obstacle::NoNamespace(why)
                | Obstacle::Captured(why)
                | Obstacle::Costly(why)
                | Obstacle::LoDown(why),
            ),
        ) => NetnsStatus::Pending(why.clone()),
        (None, None) => NetnsStatus::Pending("the daemon has not looked for it yet".to_owned()),
    }
}

fn canary(shared: &PodsState, uid: &str) -> CanaryStatus {
    let Some((canary, at)) = shared.canaries.get(uid) else {
        return CanaryStatus {
            state: CanaryState::Pending,
            detail: "not made yet".to_owned(),
            checked_age_ms: None,
        };
    };
    let (state, detail) = match canary {
        Canary::Passed => (CanaryState::Passed, "refused, as it must be".to_owned()),
        Canary::Captured { port } => (
            CanaryState::Failed,
            format!("a dial to port {port} was captured"),
        ),
        Canary::MeshSilent { port } => (
            CanaryState::Pending,
            format!("the mesh does not listen on its port {port} yet"),
        ),
        Canary::Unproven(why) => (CanaryState::Pending, why.clone()),
    };
    CanaryStatus {
        state,
        detail,
        checked_age_ms: Some(u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)),
    }
}

/// What is wrong with a pod that is served nevertheless. `mesh_runs`: whether the mesh's container runs, if that is known.
fn warnings(
    canary: Option<&(Canary, Instant)>,
    mesh_runs: Option<bool>,
    now: Instant,
) -> Vec<String> {
    let Some((Canary::MeshSilent { port }, since)) = canary else {
        return Vec::new();
    };
    let silent = now.saturating_duration_since(*since);
    if silent < SILENT || mesh_runs == Some(false) {
        return Vec::new();
    }
    vec![format!(
        "its mesh has not listened on port {port} for {} s: if the mesh redirects to another port, TCP probes of a dead app \
         pass there; the port is read from the pod's init container and annotations",
        silent.as_secs()
    )]
}

fn path(shared: &PodsState, uid: &str) -> PathStatus {
    match shared.paths.get(uid) {
        Some(Path::Kernel) => PathStatus::Kernel,
        Some(Path::Handler(why)) => PathStatus::Handler(Some(why.clone())),
        Some(Path::Fallback(why)) => PathStatus::Handler(Some(format!(
            "{why}; the kernel path serves it while the handler does not answer"
        ))),
        None => PathStatus::Handler(None),
    }
}

fn skipped(parsed: &ParsedPod) -> Vec<SkippedProbe> {
    let skipped = parsed.skipped.iter();
    skipped
        .map(|left| SkippedProbe {
            container: left.container.clone(),
            probe: left.kind.name().to_owned(),
            why: left.why.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_that_does_not_listen_for_a_minute_is_a_problem_while_its_container_runs() {
        let now = Instant::now();
        let after = |canary: Canary, seconds, runs| {
            let canary = (canary, now);
            warnings(Some(&canary), runs, now + Duration::from_secs(seconds))
        };
        let silent = || Canary::MeshSilent { port: 15_006 };
        for runs in [None, Some(true)] {
            assert!(after(silent(), 59, runs).is_empty());
            let warnings = after(silent(), 61, runs);
            assert_eq!(warnings.len(), 1);
            assert!(warnings[0].contains("15006"), "{}", warnings[0]);
        }
        assert!(after(silent(), 61, Some(false)).is_empty());
        assert!(after(Canary::Passed, 61, Some(true)).is_empty());
        assert!(warnings(None, None, now).is_empty());
    }
}
