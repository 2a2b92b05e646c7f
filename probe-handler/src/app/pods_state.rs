//! The state of pods, which the registry's task writes, and `status` and `explain` read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::history::Histories;
use super::kernel_path::Path;
use kernel::canary::Canary;
use kernel::maps::EndpointMap;
use pods::select::SelectedPod;
use reconcile::registry::Registry;
use serve::history::now_ms;

/// The state of pods that `status` shows.
pub struct PodsState {
    /// Pods, placements and endpoints.
    pub registry: Registry<EndpointMap>,
    /// Each pod of the source, served or not.
    pub parsed: Vec<Arc<SelectedPod>>,
    /// Problems of the source.
    pub problems: Vec<String>,
    /// Last canary of each pod, by UID.
    pub canaries: BTreeMap<String, (Canary, Instant)>,
    /// Which path serves each pod, by UID; empty if the kernel path is disabled.
    pub paths: BTreeMap<String, Path>,
    /// What the kubelet has done with pods.
    pub histories: Histories,
}

impl PodsState {
    /// Without pods yet.
    pub fn new(registry: Registry<EndpointMap>, histories: Histories) -> Self {
        Self {
            registry,
            parsed: Vec::new(),
            problems: Vec::new(),
            canaries: BTreeMap::new(),
            paths: BTreeMap::new(),
            histories,
        }
    }

    /// Records what the kubelet has done with the pods of the source since the last call.
    pub fn note_states(&mut self) {
        for (uid, container) in self.histories.see(&self.parsed, now_ms()) {
            let Some(entry) = self.registry.pods().get(&uid) else {
                continue;
            };
            for route in entry.routes.routes() {
                if route
                    .members
                    .iter()
                    .any(|member| member.container == container)
                {
                    route.stats.restarted();
                }
            }
        }
    }
}
