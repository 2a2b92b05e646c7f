//! The state that `probe-handler status` shows: the daemon's answer to `GET /status`, as JSON.
//!
//! Names of modes, meshes, reasons and outcomes are text here, not the daemon's enums, so that the
//! command line of one version can read the daemon of another. Times are ages, so that they stay correct
//! when the clock is set.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use probe_handler_common::counters::Counter;
use serde::{Deserialize, Serialize};

use model::Action;
use serve::table::Route;
use support::missing::MissingPart;
pub use support::readiness::State;

/// The whole state of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Its phase: starting, serving or draining.
    pub state: State,
    /// The conditions that it waits for: names of readiness guards.
    pub pending: Vec<String>,
    /// Optional parts that are missing.
    #[serde(default)]
    pub missing: Vec<MissingPart>,
    /// The kubelet that it serves.
    pub kubelet: KubeletStatus,
    /// Its programs.
    pub hooks: Vec<HookStatus>,
    /// The error with which the kernel refuses a closed port.
    pub refusal: Refusal,
    /// The addresses of the handler.
    pub handler: Vec<SocketAddr>,
    /// The counters of the eBPF programs, see [`counters`].
    pub counters: BTreeMap<String, u64>,
    /// The source of pods.
    pub source: SourceStatus,
    /// The pods in scope, in the order of the output.
    pub pods: Vec<PodStatus>,
}

/// What is known about the kubelet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubeletStatus {
    /// The process names that the daemon looks for.
    pub names: Vec<String>,
    /// The process id.
    pub pid: Option<u32>,
    /// Its cgroup2 directory.
    pub cgroup: Option<String>,
    /// Whether all programs are attached to it.
    pub attached: bool,
    /// Milliseconds since they were last attached.
    pub attached_age_ms: Option<u64>,
    /// The only process id that the programs serve; None if the process is not known.
    pub process_filter: Option<u32>,
    /// Other processes in the kubelet's cgroup.
    pub shared_with: u32,
}

/// One eBPF program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookStatus {
    /// Its name in the object (`connect4`).
    pub program: String,
    /// Whether it is attached.
    pub attached: bool,
    /// The kernel's id of the loaded program, as `bpftool prog` shows it.
    pub program_id: Option<u32>,
}

/// The error with which `connect()` to a closed port fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Refusal {
    /// As without the daemon; needs `bpf_set_retval` (Linux 6.1).
    Econnrefused,
    /// On older kernels.
    Eperm,
}

impl Refusal {
    /// The errno's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Econnrefused => "ECONNREFUSED",
            Self::Eperm => "EPERM",
        }
    }
}

/// The source of pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// The value of `--pods`.
    pub kind: String,
    /// Objects that could not be read or parsed; all others work.
    pub problems: Vec<String>,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The UID that the kubelet uses for it.
    pub uid: String,
    /// [`model::Mesh::name`].
    pub mesh: String,
    /// Addresses at which it is served.
    pub addresses: Vec<IpAddr>,
    /// Those of them that another pod has too: neither pod is served at them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<IpAddr>,
    /// Its network namespace.
    pub netns: NetnsStatus,
    /// Why it is not served, if for another reason than its canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
    /// Whether a canary dial passed the mesh's rules.
    pub canary: CanaryStatus,
    /// What is wrong although it is served, as text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Which path serves it.
    #[serde(default)]
    pub path: PathStatus,
    /// Probes that are not served.
    pub skipped: Vec<SkippedProbe>,
    /// Probes that are served.
    pub probes: Vec<ProbeStatus>,
}

/// A pod's network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetnsStatus {
    /// Found.
    Known {
        /// Inode of the namespace, as `lsns` shows it.
        inode: u64,
        /// Its id as seen from the kubelet's namespace, as `ip netns list-id` shows it.
        nsid: Option<i32>,
    },
    /// Not found yet, and why.
    Pending(String),
}

/// Which of the two data paths serves a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathStatus {
    /// The kubelet's own connection reaches the app, where the protocol allows it.
    Kernel,
    /// The handler, and why, if the kernel path is enabled.
    Handler(Option<String>),
}

impl Default for PathStatus {
    fn default() -> Self {
        Self::Handler(None)
    }
}

/// Result of the canary dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CanaryState {
    /// Not made yet: before the mesh's own listener is up a dial proves nothing.
    Pending,
    /// Refused, as it must be where nothing listens.
    Passed,
    /// Accepted: some rule captures the daemon's dials. The pod is not served until a canary passes.
    Failed,
}

impl CanaryState {
    /// Name in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Passed => "passed",
            Self::Failed => "failed",
        }
    }
}

/// The canary dial of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryStatus {
    /// Its result.
    pub state: CanaryState,
    /// Details, as text.
    pub detail: String,
    /// Milliseconds since it was made.
    pub checked_age_ms: Option<u64>,
}

/// A probe that is not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedProbe {
    /// Container that declares it.
    pub container: String,
    /// [`model::ProbeKind::name`].
    pub probe: String,
    /// Why it is not served.
    pub why: String,
}

/// A probe that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// Container that declares it; several, joined with `+`, where they declare the same check.
    pub container: String,
    /// Kind of probe; several, joined with `+`, where they declare the same check.
    pub probe: String,
    /// [`model::ProbeMode::name`].
    pub mode: String,
    /// `http`, `https`, `tcp`, `grpc`.
    pub protocol: String,
    /// The app's port.
    pub port: u16,
    /// HTTP: path and query.
    pub target: Option<String>,
    /// gRPC: the service, if one is declared.
    pub service: Option<String>,
    /// The probe's own timeout; lifecycle hooks have none.
    pub timeout_ms: Option<u64>,
    /// The last verdict.
    pub last: Option<LastVerdict>,
    /// Number of results that the kubelet counts as success.
    pub success: u64,
    /// Number of results that the kubelet counts as failure.
    pub failure: u64,
    /// Number of unknown results: spliced, or the kubelet closed the connection.
    pub unknown: u64,
}

/// The last verdict on a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastVerdict {
    /// [`probe::verdict::Outcome::name`].
    pub outcome: String,
    /// The status code that the kubelet got.
    pub status: u16,
    /// [`probe::verdict::Reason::name`].
    pub reason: String,
    /// Details, as text.
    pub detail: String,
    /// Microseconds from accepting the kubelet's connection to the verdict; None if the kernel refused it.
    pub latency_us: Option<u64>,
    /// Milliseconds since the verdict.
    pub age_ms: u64,
}

// === impl PodStatus ===

impl PodStatus {
    /// Why the pod is not served now, if so.
    pub fn trouble(&self) -> Option<String> {
        match (&self.netns, self.canary.state) {
            (NetnsStatus::Pending(why), _) => Some(format!("no network namespace yet: {why}")),
            _ if self.obstacle.is_some() => self.obstacle.clone(),
            (_, CanaryState::Failed) => Some(format!("canary failed: {}", self.canary.detail)),
            _ if self.addresses.is_empty() => Some(
                "no address: its network namespace has none, or none of the addresses in its status"
                    .to_owned(),
            ),
            _ if !self.conflicts.is_empty() => Some(format!(
                "another pod also has its address {}: neither is served at it",
                self.conflicts[0]
            )),
            _ => None,
        }
    }
}

// === impl ProbeStatus ===

impl ProbeStatus {
    /// The row of `route`, with ages at `now`.
    pub fn new(route: &Route, now: Instant) -> Self {
        let (target, service) = match &route.action {
            Action::Http { target, .. } => (Some(target.clone()), None),
            Action::Grpc { service, .. } if !service.is_empty() => (None, Some(service.clone())),
            Action::Grpc { .. } | Action::Tcp { .. } => (None, None),
        };
        let (success, failure, unknown) = route.stats.counts();
        let last = route.stats.last().map(|(at, verdict)| LastVerdict {
            outcome: verdict.outcome(route.is_hook()).name().to_owned(),
            status: verdict.status,
            reason: verdict.reason.name().to_owned(),
            detail: verdict.detail,
            latency_us: verdict.latency.map(|latency| whole(latency.as_micros())),
            age_ms: whole(now.saturating_duration_since(at).as_millis()),
        });
        Self {
            container: route.container_label(),
            probe: route.kind_label(),
            mode: route.mode.name().to_owned(),
            protocol: route.action.protocol().to_owned(),
            port: route.action.port(),
            target,
            service,
            timeout_ms: route.timeout.map(|timeout| whole(timeout.as_millis())),
            last,
            success,
            failure,
            unknown,
        }
    }
}

/// The counters of the eBPF programs by name, from their values indexed by [`Counter`].
pub fn counters(values: [u64; Counter::COUNT as usize]) -> BTreeMap<String, u64> {
    Counter::ALL
        .iter()
        .zip(values)
        .map(|(counter, value)| (counter.name().to_owned(), value))
        .collect()
}

/// The rows of a pod's routes, with ages at `now`, in a fixed order.
pub fn route_rows(routes: &[Arc<Route>], now: Instant) -> Vec<ProbeStatus> {
    let mut rows: Vec<_> = routes
        .iter()
        .map(|route| ProbeStatus::new(route, now))
        .collect();
    rows.sort_by(|a, b| order(a).cmp(&order(b)));
    rows
}

fn order(row: &ProbeStatus) -> (&str, &str, u16, &str, Option<&str>, &str) {
    let target = row.target.as_deref().or(row.service.as_deref());
    (
        &row.container,
        &row.probe,
        row.port,
        &row.protocol,
        target,
        &row.mode,
    )
}

/// Converts the 128-bit integers of `Duration`; 64 bits are enough for 500,000 years.
fn whole(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
