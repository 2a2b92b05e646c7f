//! Observed probes: what serving them would change.

use serde::{Deserialize, Serialize};

/// One observed pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedStatus {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The reason why its probes can't be compared; `None` if they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Its probes, without hooks.
    pub probes: Vec<ComparedProbe>,
}

/// One observed probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparedProbe {
    /// The container that declares it.
    pub container: String,
    /// `liveness`, `readiness` or `startup`.
    pub probe: String,
    /// [`model::ProbeMode::name`].
    pub mode: String,
    /// What it does: `http:8080/live`, `tcp:5432`, `grpc:9090/service`.
    pub check: String,
    /// What serving it would change: `none`, `cured`, `exposed` or `unclear`; `None` before the first
    /// comparison.
    pub change: Option<String>,
    /// What the kubelet would do differently, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consequence: Option<String>,
    /// The result through the mesh.
    pub now: Option<ComparedResult>,
    /// The result when the mesh is bypassed.
    pub then: Option<ComparedResult>,
    /// Milliseconds since the last comparison.
    pub age_ms: Option<u64>,
    /// Number of comparisons in which both results were known.
    pub compared: u64,
    /// How often it failed, and would have passed.
    pub cured: u64,
    /// How often it passed, and would have failed.
    pub exposed: u64,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparedResult {
    /// `success`, `failure` or `unknown`.
    pub result: String,
    /// [`model::result::Reason::name`].
    pub reason: String,
    /// For people.
    pub detail: String,
}
