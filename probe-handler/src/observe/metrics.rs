//! Everything that is counted, in Prometheus' terms. Label sets are bounded: a pod's series go when
//! the pod goes.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::check::verdict::{Outcome, Verdict};
use crate::handler::table::Route;
use crate::pods::model::PodId;

/// Labels of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProbeLabels {
    /// Kubernetes namespace of the pod.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// Container that declares the probe.
    pub container: String,
    /// `liveness`, `readiness`, `startup`, `poststart`, `prestop`; joined with `+` where several
    /// declare the very same check.
    pub probe: String,
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
    pub probe: String,
    /// `success`, `failure`, `unknown`.
    pub result: &'static str,
    /// [`crate::check::verdict::Reason::name`].
    pub reason: &'static str,
}

/// Why a connection was relayed to the pod as if we did not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RelayLabels {
    /// `undeclared` (no probe of the pod looks like this) or `endpoint_gone`.
    pub reason: &'static str,
}

/// The daemon's metrics.
pub struct Metrics {
    verdicts: Family<VerdictLabels, Counter>,
    latency: Family<ProbeLabels, Histogram>,
    relayed: Family<RelayLabels, Counter>,
    /// Connections to the handler that no hook of ours saw being made; each was reset.
    pub unknown_peers: Counter,
    /// Pods whose canary dial was captured by the mesh's rules.
    pub canary_failures: Counter,
    /// Connections accepted by the handler.
    pub accepted: Counter,
    /// Failed accepts, for want of descriptors as a rule.
    pub accept_errors: Counter,
}

impl Metrics {
    /// Registers all of them in `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            verdicts: Family::default(),
            latency: Family::new_with_constructor(|| {
                Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0])
            }),
            relayed: Family::default(),
            unknown_peers: Counter::default(),
            canary_failures: Counter::default(),
            accepted: Counter::default(),
            accept_errors: Counter::default(),
        };
        registry.register("probes", "Probes answered", metrics.verdicts.clone());
        registry.register(
            "probe_duration_seconds",
            "From accepting the kubelet's connection to the verdict",
            metrics.latency.clone(),
        );
        registry.register(
            "relayed",
            "Connections of the kubelet that were no declared probe, relayed through the mesh",
            metrics.relayed.clone(),
        );
        registry.register(
            "unknown_peers",
            "Connections to the handler that no hook saw being made; each was reset",
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
            "Failed accepts of the handler, for want of descriptors as a rule",
            metrics.accept_errors.clone(),
        );
        metrics
    }

    /// Notes the verdict of `route` of `pod`, in the route's own statistics too.
    pub fn verdict(&self, pod: &PodId, route: &Route, verdict: Verdict) {
        let outcome = verdict.outcome(route.is_hook());
        let (container, probe) = (route.container_label(), route.kind_label());
        let _ = self
            .verdicts
            .get_or_create(&VerdictLabels {
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                container: container.clone(),
                probe: probe.clone(),
                result: outcome.name(),
                reason: verdict.reason.name(),
            })
            .inc();
        if outcome != Outcome::Unknown {
            self.latency
                .get_or_create(&ProbeLabels {
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                    container,
                    probe,
                })
                .observe(seconds(verdict.latency));
        }
        route.stats.record(outcome, verdict);
    }

    /// Notes a connection relayed as if we did not exist.
    pub fn relayed(&self, reason: &'static str) {
        let _ = self.relayed.get_or_create(&RelayLabels { reason }).inc();
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
