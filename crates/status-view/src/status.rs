//! The state of a daemon: its answer to `GET /status`, as JSON.
//!
//! Names of modes, meshes, reasons and outcomes are text here, not the daemon's enums, so that the
//! command line of one version can read the daemon of another. Times are ages, which stay correct when the clock is set,
//! and beside them RFC 3339.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::observed::ObservedStatus;
use super::settings::SettingsStatus;
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
    /// When it started, in RFC 3339.
    #[serde(default)]
    pub started_at: String,
    /// The time of this state, in RFC 3339.
    #[serde(default)]
    pub time: String,
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
    /// The counters of the eBPF programs, by name.
    pub counters: BTreeMap<String, u64>,
    /// The source of pods.
    pub source: SourceStatus,
    /// The pods in scope, in the order of the output.
    pub pods: Vec<PodStatus>,
    /// The other pods of this node, in the same order.
    #[serde(default)]
    pub not_served: Vec<OtherPod>,
    /// The settings that may change while the daemon runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<SettingsStatus>,
    /// The pods in mode observe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub observed: Vec<ObservedStatus>,
}

/// A pod of which no probe is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherPod {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The UID that the kubelet uses for it.
    pub uid: String,
    /// Why: the first rule that decided.
    pub why: String,
    /// Its probes that would not be served even if the pod were.
    pub skipped: Vec<SkippedProbe>,
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
    /// When they were last attached, in RFC 3339.
    #[serde(default)]
    pub attached_at: Option<String>,
    /// The only process id that the programs serve; `None` if the process is not known.
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
    /// Why the handler does not serve it, unless its canary is the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
    /// Whether the kernel path serves it although the handler does not.
    #[serde(default)]
    pub by_kernel_alone: bool,
    /// Whether a canary dial passed the mesh's rules.
    pub canary: CanaryStatus,
    /// A problem of a pod that is served, as text.
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
    /// The kubelet's own connection reaches the app, if the protocol allows it.
    Kernel,
    /// Like `Kernel`, but a tc filter matches the connection instead of xt_bpf.
    KernelTc,
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
    /// When it was made, in RFC 3339.
    #[serde(default)]
    pub checked_at: Option<String>,
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
    /// Container that declares it.
    pub container: String,
    /// Kind of probe.
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
    /// `periodSeconds`; lifecycle hooks have none.
    #[serde(default)]
    pub period_ms: Option<u64>,
    /// `failureThreshold`; lifecycle hooks have none.
    #[serde(default)]
    pub failure_threshold: Option<u32>,
    /// `successThreshold`; lifecycle hooks have none.
    #[serde(default)]
    pub success_threshold: Option<u32>,
    /// How many failures in a row there are now.
    #[serde(default)]
    pub failures_in_a_row: u32,
    /// How many other probes have the same results, because their requests can't be distinguished.
    #[serde(default)]
    pub shared_with: usize,
    /// Whether some of its results may be those of other probes of the port.
    #[serde(default)]
    pub is_shared: bool,
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
    /// [`model::result::Outcome::name`].
    pub outcome: String,
    /// The status with which the app answered HTTP; `None` if it did not.
    pub status: Option<u16>,
    /// [`model::result::Reason::name`].
    pub reason: String,
    /// Details, as text.
    pub detail: String,
    /// Microseconds from accepting the kubelet's connection to the verdict; `None` if the kernel refused it.
    pub latency_us: Option<u64>,
    /// Milliseconds since the verdict.
    pub age_ms: u64,
    /// When it was, in RFC 3339.
    #[serde(default)]
    pub at: String,
}

// === impl PodStatus ===

impl PodStatus {
    /// What a pod with [`PodStatus::trouble`] is.
    pub fn effect(&self) -> &'static str {
        match self.by_kernel_alone {
            true => "served only by the kernel path",
            false => "not served",
        }
    }

    /// Why the pod is not served now, or only by the kernel path; `None` if the handler serves it.
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
    /// `http:8080/healthz`, `tcp:5432`, `grpc:9000/service`.
    pub fn check(&self) -> String {
        let rest = match (&self.target, &self.service) {
            (Some(target), _) => target.clone(),
            (None, Some(service)) => format!("/{service}"),
            (None, None) => String::new(),
        };
        format!("{}:{}{rest}", self.protocol, self.port)
    }
}
