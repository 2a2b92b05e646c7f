//! Builds the state that `probe-handler status` shows.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use probe_handler_common::programs;

use super::kernel_path::Path;
use super::kubelet_task::Attachment;
use super::pods_state::PodsState;
use super::settings::LiveSettings;
use crate::cli::config::AgentConfig;
use crate::observe::moment::{Moment, rfc3339};
use crate::observe::observed::observed_status;
use crate::observe::status::{counters, probe_row, probe_rows};
use compare::pods::ObservedPods;
use kernel::canary::Canary;
use kernel::exemption::Matcher;
use kernel::maps::CounterMap;
use model::ProbeMode;
use pods::select::SelectedPod;
use reconcile::redirects::Port;
use reconcile::registry::{Obstacle, PodEntry};
use serve::table::Route;
use status_view::advice::{Advice, advice};
use status_view::history::{PodHistory, ProbeHistory};
use status_view::status::{
    CanaryState, CanaryStatus, HookStatus, KubeletStatus, NetnsStatus, OtherPod, PathStatus,
    PodStatus, Refusal, SkippedProbe, SourceStatus, Status,
};
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
    /// Pods that are observed.
    pub observed: Arc<ObservedPods>,
    /// The addresses of the handler.
    pub handler: Vec<SocketAddr>,
    /// The counters of the eBPF programs.
    pub counters: Arc<CounterMap>,
    /// A problem of the kernel path.
    pub kernel_path_trouble: Option<String>,
    /// The settings that may change.
    pub settings: Arc<LiveSettings>,
}

impl Reporter {
    /// The current state.
    pub fn report(&self) -> Status {
        let now = Moment::now();
        let attachment = self.attachment.lock();
        let (attached, _) = attachment.programs.attached();
        let hooks = attachment
            .programs
            .ids()
            .into_iter()
            // Program `answer` is optional; `missing` shows if it is not attached.
            .filter(|(program, _)| *program != programs::ANSWER || attached.contains(program))
            .map(|(program, id)| HookStatus {
                program: program.to_owned(),
                attached: attached.contains(&program),
                program_id: Some(id),
            })
            .collect();
        let mut needed = programs::ATTACH_ORDER.iter();
        let all_attached = needed.all(|program| attached.contains(program));
        let kubelet = self.kubelet(now, &attachment, all_attached);
        let refusal = if attachment.programs.refuses_with_econnrefused() {
            Refusal::Econnrefused
        } else {
            Refusal::Eperm
        };
        let trouble = attachment.trouble.clone();
        let pins_trouble = attachment.programs.pins_trouble().map(str::to_owned);
        drop(attachment);

        let shared = self.shared.lock();
        Status {
            version: VERSION.to_owned(),
            pid: std::process::id(),
            uptime_seconds: now.age_ms(self.started) / 1000,
            started_at: now.time_of(self.started),
            time: rfc3339(now.ms),
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
                    .chain(pins_trouble)
                    .chain(self.kernel_path_trouble.clone())
                    .chain(self.settings.problems())
                    .chain(failed_endpoints(shared.registry.failed()))
                    .collect(),
            },
            pods: pods(&shared, now),
            not_served: not_served(&shared.parsed),
            settings: Some(self.settings.status(now)),
            observed: self.observed.all().iter().map(observed_status).collect(),
        }
    }

    /// The history of a pod; `None` if the source has no such pod.
    pub fn explain(&self, namespace: &str, name: &str) -> Option<PodHistory> {
        let now = Moment::now();
        let shared = self.shared.lock();
        let named = |id: &model::PodId| id.namespace == namespace && id.name == name;
        // If several pods have had this name, uses the one that is served.
        let parsed = shared.parsed.iter().filter(|pod| named(&pod.id));
        let parsed = parsed.max_by_key(|pod| pod.pod.is_some())?;
        let status = pods(&shared, now);
        let status = status.iter().find(|pod| pod.uid == parsed.id.uid);
        let trouble = status.and_then(PodStatus::trouble);
        let mut history = history(&shared, parsed, now);
        history.not_served = parsed.not_served.map(|why| why.to_string()).or(trouble);
        Some(history)
    }

    /// What to change about probes, in the order of the pods' names.
    pub fn advice(&self) -> Vec<Advice> {
        let now = Moment::now();
        let shared = self.shared.lock();
        let served = shared.parsed.iter().filter(|pod| pod.pod.is_some());
        let mut advice: Vec<_> = served
            .flat_map(|pod| advice(&history(&shared, pod, now)))
            .collect();
        // Stable: within a pod in the order of the probes.
        advice
            .sort_by(|one, other| (&one.namespace, &one.pod).cmp(&(&other.namespace, &other.pod)));
        advice
    }

    fn kubelet(&self, now: Moment, attachment: &Attachment, all_attached: bool) -> KubeletStatus {
        let kubelet = attachment.kubelet.as_ref();
        let since = attachment.since.filter(|_| kubelet.is_some());
        KubeletStatus {
            names: self.config.kubelet.names.clone(),
            pid: kubelet.and_then(|kubelet| kubelet.pid),
            cgroup: kubelet.map(|kubelet| kubelet.cgroup.display().to_string()),
            attached: all_attached && kubelet.is_some(),
            attached_age_ms: since.map(|since| now.age_ms(since)),
            attached_at: since.map(|since| now.time_of(since)),
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

/// The history of a pod, without the reason if it is not served.
fn history(shared: &PodsState, pod: &SelectedPod, now: Moment) -> PodHistory {
    let uid = &pod.id.uid;
    let (state, events) = shared.histories.of(uid);
    let routes = shared.registry.pods().get(uid);
    let routes = routes.map_or_else(Vec::new, |entry| entry.routes.routes());
    PodHistory {
        namespace: pod.id.namespace.clone(),
        name: pod.id.name.clone(),
        uid: uid.clone(),
        now_ms: now.ms,
        not_served: None,
        state,
        events,
        daemon_starts_ms: shared.histories.starts_ms.clone(),
        probes: probe_histories(&routes, now),
        skipped: skipped(pod),
    }
}

fn probe_histories(routes: &[Arc<Route>], now: Moment) -> Vec<ProbeHistory> {
    let mut probes: Vec<_> = routes
        .iter()
        .flat_map(|route| {
            let (runs, p99) = route.stats.history();
            let p99_us = p99.and_then(|p99| u64::try_from(p99.as_micros()).ok());
            route.members.iter().map(move |member| ProbeHistory {
                probe: probe_row(route, member, now),
                p99_us,
                runs: runs.clone(),
            })
        })
        .collect();
    probes.sort_by_cached_key(|one| (one.probe.container.clone(), one.probe.probe.clone()));
    probes
}

/// The pods of the source that are not served, and the first rule that decided so.
fn not_served(parsed: &[Arc<SelectedPod>]) -> Vec<OtherPod> {
    let mut others: Vec<OtherPod> = parsed
        .iter()
        .filter_map(|pod| {
            let why = pod.not_served?.to_string();
            Some(OtherPod {
                namespace: pod.id.namespace.clone(),
                name: pod.id.name.clone(),
                uid: pod.id.uid.clone(),
                why,
                skipped: skipped(pod),
            })
        })
        .collect();
    others.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    others
}

fn pods(shared: &PodsState, now: Moment) -> Vec<PodStatus> {
    let parsed = shared.parsed.iter();
    let parsed: HashMap<&str, &SelectedPod> = parsed
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
                by_kernel_alone: entry.is_by_kernel_alone(),
                canary: canary(shared, &id.uid, now),
                warnings: warnings(
                    shared.canaries.get(&id.uid),
                    parsed.get(id.uid.as_str()).and_then(|pod| pod.mesh_runs),
                    now.instant,
                ),
                path: path(shared, &id.uid),
                skipped: parsed
                    .get(id.uid.as_str())
                    .map_or_else(Vec::new, |pod| skipped(pod))
                    .into_iter()
                    .chain(redirected(entry))
                    .collect(),
                probes: probe_rows(&served_routes(entry), now),
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

fn canary(shared: &PodsState, uid: &str, now: Moment) -> CanaryStatus {
    let Some((canary, at)) = shared.canaries.get(uid) else {
        return CanaryStatus {
            state: CanaryState::Pending,
            detail: "not made yet".to_owned(),
            checked_age_ms: None,
            checked_at: None,
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
        checked_age_ms: Some(now.age_ms(*at)),
        checked_at: Some(now.time_of(*at)),
    }
}

/// The problem of a pod that is served. `mesh_runs`: whether the mesh's container runs, if that is known.
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
        Some(Path::Kernel(Matcher::XtBpf)) => PathStatus::Kernel,
        Some(Path::Kernel(Matcher::Tc)) => PathStatus::KernelTc,
        Some(Path::Handler(why)) => PathStatus::Handler(Some(why.clone())),
        Some(Path::Fallback(why)) => PathStatus::Handler(Some(format!(
            "{why}; the kernel path serves it while the handler does not answer"
        ))),
        None => PathStatus::Handler(None),
    }
}

/// The probes of ports that the pod's own rules redirect.
fn redirected(entry: &PodEntry) -> Vec<SkippedProbe> {
    let placement = entry.placement.iter();
    let redirects = placement.flat_map(|placement| placement.redirects.all());
    let of_port = |(port, to): (Port, SocketAddr)| {
        let why = own_rules(port, to, entry.addresses());
        let routes = entry.routes.native(port.number).into_iter();
        let members = routes.flat_map(|route| route.members.clone());
        members.map(move |member| SkippedProbe {
            container: member.container,
            probe: member.kind.name().to_owned(),
            why: why.clone(),
        })
    };
    redirects.flat_map(of_port).collect()
}

/// Why probes of `port` are skipped, which the rules of a pod with `addresses` redirect `to`.
fn own_rules(port: Port, to: SocketAddr, addresses: &[IpAddr]) -> String {
    let to = match addresses.contains(&to.ip()) {
        true => to.port().to_string(),
        false => to.to_string(),
    };
    let family = match port.is_ipv4 {
        true => "IPv4",
        false => "IPv6",
    };
    let has_both = addresses.iter().any(IpAddr::is_ipv4) && addresses.iter().any(IpAddr::is_ipv6);
    let over = if has_both {
        format!(" over {family}")
    } else {
        String::new()
    };
    format!(
        "the pod's own rules redirect port {}{over} to {to}: the kubelet's connection is unchanged",
        port.number
    )
}

/// The routes except those on ports that the pod's own rules redirect at all its addresses.
fn served_routes(entry: &PodEntry) -> Vec<Arc<Route>> {
    let Some(placement) = &entry.placement else {
        return entry.routes.routes();
    };
    let is_redirected = |port: u16| {
        let addresses = entry.addresses();
        let leads = |ip: &IpAddr| {
            placement
                .redirects
                .leads(SocketAddr::new(*ip, port))
                .is_some()
        };
        !addresses.is_empty() && addresses.iter().all(leads)
    };
    let routes = entry.routes.routes().into_iter();
    routes
        .filter(|route| route.mode != ProbeMode::Transparent || !is_redirected(route.action.port()))
        .collect()
}

fn skipped(parsed: &SelectedPod) -> Vec<SkippedProbe> {
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
    fn a_redirected_port_is_described_by_where_it_leads() {
        let ip = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let both = [ip("10.0.0.1"), ip("fd00::1")];
        let v4 = Port {
            is_ipv4: true,
            number: 80,
        };
        let to = |text: &str| text.parse().expect("an address and a port");
        let why = own_rules(v4, to("10.0.0.1:8080"), &both[..1]);
        assert!(why.contains("redirect port 80 to 8080"), "{why}");
        let why = own_rules(v4, to("10.0.0.1:8080"), &both);
        assert!(why.contains("redirect port 80 over IPv4 to 8080"), "{why}");
        let why = own_rules(v4, to("172.17.0.2:80"), &both);
        assert!(why.contains("to 172.17.0.2:80"), "{why}");
    }

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
