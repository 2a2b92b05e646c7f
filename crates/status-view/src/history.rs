//! The history of a pod and its probes: the daemon's answer to `GET /explain/NAMESPACE/POD`, as JSON.

use serde::{Deserialize, Serialize};

use super::status::{ProbeStatus, SkippedProbe};
use model::result::Run;
use model::state::PodState;

/// The history of a pod. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodHistory {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The UID that the kubelet uses for it.
    pub uid: String,
    /// Now.
    pub now_ms: u64,
    /// Why it is not served, by the first rule that decided.
    pub not_served: Option<String>,
    /// What the kubelet has done with it, according to its status.
    pub state: PodState,
    /// Changes of that state, oldest first.
    pub events: Vec<PodEvent>,
    /// Start times of the daemons that recorded this history, oldest first; the last one is this daemon's.
    pub daemon_starts_ms: Vec<u64>,
    /// Its probes that are served.
    pub probes: Vec<ProbeHistory>,
    /// Its probes that are not.
    pub skipped: Vec<SkippedProbe>,
}

/// The history of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeHistory {
    /// The probe, and its results now.
    pub probe: ProbeStatus,
    /// Of its successes in the last hour, 99 % took no longer than this, in microseconds; `None` if there were too few.
    #[serde(default)]
    pub p99_us: Option<u64>,
    /// Runs of equal results, oldest first.
    pub runs: Vec<Run>,
}

/// A change of a pod's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodEvent {
    /// When the kubelet made the change; if that is not known, when the daemon received it.
    pub at_ms: u64,
    /// What changed.
    pub change: PodChange,
}

/// What changed in a pod's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodChange {
    /// The kubelet has restarted a container.
    Restarted {
        /// Its name.
        container: String,
        /// Total number of its restarts.
        restarts: u32,
        /// How it had ended, such as `Error`; empty if that is not known.
        reason: String,
        /// Its exit code, if that is known.
        exit_code: Option<i32>,
    },
    /// The pod has become ready.
    Ready,
    /// The pod has become unready.
    Unready,
}
