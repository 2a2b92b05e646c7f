//! The daemon's Prometheus metrics. Label sets are bounded: a pod's series are removed with the pod.
//! `docs/metrics.md` shows a scrape.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::flips::Flips;
use crate::table::Route;
use model::{Mesh, PodId, Probe};
use probe::verdict::{Outcome, Verdict};
use support::build;

/// Prefix of every metric's name.
pub const PREFIX: &str = "probe_handler";

/// How many removed pods are remembered, so that checks still in flight for them add no series.
const REMEMBERED_PODS: usize = 1024;

/// Labels of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProbeLabels {
    /// Kubernetes namespace of the pod.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// Container that declares the probe.
    pub container: String,
    /// `liveness`, `readiness`, `startup`, `poststart`, `prestop`.
    pub probe: &'static str,
}

/// Labels of a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct VerdictLabels {
    /// Kubernetes namespace of the pod.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// Container that declares the probe.
    pub container: String,
    /// As in [`ProbeLabels`].
    pub probe: &'static str,
    /// `success`, `failure`, `unknown`.
    pub result: &'static str,
    /// [`probe::verdict::Reason::name`].
    pub reason: &'static str,
}

impl VerdictLabels {
    /// The labels of the probe alone.
    fn probe_labels(&self) -> ProbeLabels {
        ProbeLabels {
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            container: self.container.clone(),
            probe: self.probe,
        }
    }
}

/// Why a connection was relayed to the pod through the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RelayLabels {
    /// `undeclared` (it matches no probe of the pod), `endpoint_gone`, `not_dialled` (the pod cannot be dialled
    /// from inside because of the node), `elsewhere` (its sockets are in a guest) or `too_costly` (its checks are).
    pub reason: &'static str,
}

/// Labels of a number of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub struct PodLabels {
    /// [`Mesh::name`].
    pub mesh: &'static str,
    /// [`PodState::name`].
    pub state: &'static str,
}

/// Whether a pod is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodState {
    /// Its network namespace or addresses are not known yet.
    Pending,
    /// Its endpoints are in place.
    Serving,
    /// Its canary dial failed: not served until one passes.
    Captured,
    /// Dialling inside it costs too much: not served until it no longer does.
    Costly,
    /// Its loopback interface is down: not served until it is up.
    LoDown,
    /// Another pod has one of its addresses too, so neither pod is served there.
    Conflict,
}

impl PodState {
    /// Name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Serving => "serving",
            Self::Captured => "captured",
            Self::Costly => "costly",
            Self::LoDown => "lo_down",
            Self::Conflict => "conflict",
        }
    }
}

/// The labels of each pod's series, so that they can be removed.
#[derive(Default)]
struct Tracked {
    series: HashMap<PodId, HashSet<VerdictLabels>>,
    /// The pods removed last, newest at the end.
    gone: VecDeque<PodId>,
}

/// The daemon's metrics.
pub struct Metrics {
    tracked: Mutex<Tracked>,
    pods: Family<PodLabels, Gauge>,
    /// The labels that `pods` has now.
    counted: Mutex<Vec<PodLabels>>,
    verdicts: Family<VerdictLabels, Counter>,
    latency: Family<ProbeLabels, Histogram>,
    relayed: Family<RelayLabels, Counter>,
    /// Connections to the handler that no eBPF program recorded; each was reset.
    pub unknown_peers: Counter,
    /// Pods whose canary dial was captured by the mesh's rules.
    pub canary_failures: Counter,
    /// Connections accepted by the handler.
    pub accepted: Counter,
    /// Endpoints (address and port) served now.
    pub endpoints: Gauge,
    /// Endpoints that could not be added to the kernel's map, or removed from it.
    pub endpoints_failed: Gauge,
    /// 1 while all programs are attached to the kubelet's cgroup, else 0.
    pub attached: Gauge,
    /// Failed accepts, usually because no file descriptors are left.
    pub accept_errors: Counter,
    /// Number of verdicts that differed from the previous one of their route. Not a metric: the daemon's history
    /// reads it.
    pub changes: AtomicU64,
    /// Changes of verdicts. Not a metric: Events are made from them.
    pub flips: Flips,
}

impl Metrics {
    /// Registers all of them in `registry`, which should have the prefix [`PREFIX`].
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            tracked: Mutex::default(),
            pods: Family::default(),
            counted: Mutex::default(),
            endpoints: Gauge::default(),
            endpoints_failed: Gauge::default(),
            attached: Gauge::default(),
            verdicts: Family::default(),
            latency: Family::new_with_constructor(|| {
                Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0])
            }),
            relayed: Family::default(),
            unknown_peers: Counter::default(),
            canary_failures: Counter::default(),
            accepted: Counter::default(),
            accept_errors: Counter::default(),
            changes: AtomicU64::new(0),
            flips: Flips::default(),
        };
        build::register(registry);
        registry.register(
            "pods",
            "Pods with probes to serve, by mesh and state",
            metrics.pods.clone(),
        );
        registry.register(
            "endpoints",
            "Endpoints (address and port) served now",
            metrics.endpoints.clone(),
        );
        registry.register(
            "endpoints_failed",
            "Endpoints that could not be added to the kernel's map, or removed from it",
            metrics.endpoints_failed.clone(),
        );
        registry.register(
            "attached",
            "1 while all programs are attached to the kubelet's cgroup",
            metrics.attached.clone(),
        );
        registry.register("probes", "Probes answered", metrics.verdicts.clone());
        registry.register_with_unit(
            "probe_duration",
            "From accepting the kubelet's connection to the verdict",
            Unit::Seconds,
            metrics.latency.clone(),
        );
        registry.register(
            "relayed",
            "Kubelet connections relayed to the pod through the mesh, by reason",
            metrics.relayed.clone(),
        );
        registry.register(
            "unknown_peers",
            "Connections to the handler that no eBPF program recorded; each was reset",
            metrics.unknown_peers.clone(),
        );
        registry.register(
            "canary_failures",
            "Canary dials that the mesh's rules captured",
            metrics.canary_failures.clone(),
        );
        registry.register(
            "accepted",
            "Connections accepted by the handler",
            metrics.accepted.clone(),
        );
        registry.register(
            "accept_errors",
            "Failed accepts of the handler, usually because no file descriptors are left",
            metrics.accept_errors.clone(),
        );
        metrics
    }

    /// Counts the verdict of `route` of `pod` for each of its probes, and in the route's own statistics. A check that was
    /// still in flight when its pod was removed adds no series for it.
    pub fn verdict(&self, pod: &PodId, route: &Route, verdict: Verdict) {
        let outcome = verdict.outcome(route.is_hook());
        for member in &route.members {
            self.count(pod, member, outcome, &verdict);
        }
        if route.stats.record(outcome, verdict) {
            let _ = self.changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn count(&self, pod: &PodId, probe: &Probe, outcome: Outcome, verdict: &Verdict) {
        let labels = VerdictLabels {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            container: probe.container.clone(),
            probe: probe.kind.name(),
            result: outcome.name(),
            reason: verdict.reason.name(),
        };
        let mut tracked = self.tracked.lock();
        if tracked.series.contains_key(pod) || !tracked.gone.contains(pod) {
            let _ = self.verdicts.get_or_create(&labels).inc();
            if let Some(latency) = verdict.latency
                && outcome != Outcome::Unknown
            {
                self.latency
                    .get_or_create(&labels.probe_labels())
                    .observe(seconds(latency));
            }
            let known = tracked.series.entry(pod.clone()).or_default();
            let _ = known.insert(labels);
        }
    }

    /// Lets `pod` have series again: needed for a pod that returns with the UID it had when it was removed.
    pub fn adopt(&self, pod: &PodId) {
        self.tracked.lock().gone.retain(|gone| gone != pod);
    }

    /// Removes the series of `pod`, which was removed. A pod of the same name and another UID keeps
    /// the series to which it has added.
    pub fn forget(&self, pod: &PodId) {
        let mut tracked = self.tracked.lock();
        if !tracked.gone.contains(pod) {
            if tracked.gone.len() == REMEMBERED_PODS {
                let _ = tracked.gone.pop_front();
            }
            tracked.gone.push_back(pod.clone());
        }
        let Some(series) = tracked.series.remove(pod) else {
            return;
        };
        let kept: HashSet<&VerdictLabels> = tracked
            .series
            .iter()
            .filter(|(other, _)| other.namespace == pod.namespace && other.name == pod.name)
            .flat_map(|(_, labels)| labels)
            .collect();
        let kept_probes: HashSet<_> = kept.iter().map(|labels| labels.probe_labels()).collect();
        for labels in &series {
            if !kept.contains(labels) {
                let _ = self.verdicts.remove(labels);
            }
            let probe = labels.probe_labels();
            if !kept_probes.contains(&probe) {
                let _ = self.latency.remove(&probe);
            }
        }
    }

    /// Sets the number of pods by mesh and state; combinations without a pod have no series.
    pub fn set_pods(&self, pods: impl IntoIterator<Item = (Mesh, PodState)>) {
        let mut counts: BTreeMap<PodLabels, i64> = BTreeMap::new();
        for (mesh, state) in pods {
            let labels = PodLabels {
                mesh: mesh.name(),
                state: state.name(),
            };
            *counts.entry(labels).or_default() += 1;
        }
        let mut counted = self.counted.lock();
        for labels in counted.iter() {
            if !counts.contains_key(labels) {
                let _ = self.pods.remove(labels);
            }
        }
        for (labels, count) in &counts {
            let _ = self.pods.get_or_create(labels).set(*count);
        }
        *counted = counts.into_keys().collect();
    }

    /// Counts a connection relayed through the mesh.
    pub fn relayed(&self, reason: &'static str) {
        let _ = self.relayed.get_or_create(&RelayLabels { reason }).inc();
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
#[cfg(test)]
mod tests;
