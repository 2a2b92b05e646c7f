//! What the kubelet has done with a pod, according to the Pod's status.

use serde::{Deserialize, Serialize};

/// The state of a pod. All times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    /// Condition `Ready`, if the status contains it.
    pub ready: Option<bool>,
    /// When that condition changed last.
    pub ready_since_ms: Option<u64>,
    /// Its containers, and init containers, that have a status.
    pub containers: Vec<ContainerState>,
}

/// The state of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Its name.
    pub name: String,
    /// `restartCount`.
    pub restarts: u32,
    /// When it was started, if it runs.
    pub started_ms: Option<u64>,
    /// How it ended last.
    pub ended: Option<Ended>,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// `reason`, such as `Error` or `OOMKilled`.
    pub reason: String,
    /// `exitCode`.
    pub exit_code: i32,
    /// `finishedAt`.
    pub at_ms: Option<u64>,
}
