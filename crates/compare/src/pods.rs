//! The pods that are observed now, for `status`.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::Observed;
use model::{Pod, PodId, ProbeKind};

/// All observed pods, by UID.
#[derive(Debug, Default)]
pub struct ObservedPods(Mutex<BTreeMap<String, ObservedPod>>);

/// One observed pod.
#[derive(Clone, Debug)]
pub struct ObservedPod {
    /// Its identity.
    pub id: PodId,
    /// Its probes.
    pub probes: Vec<Arc<Observed>>,
    /// The reason why its probes can't be compared now; `None` if they can.
    pub trouble: Option<String>,
}

impl ObservedPods {
    /// Adds `pod`, or replaces it; returns its probes.
    pub fn add(&self, pod: &Pod) -> Vec<Arc<Observed>> {
        let probes: Vec<_> = crate::observed(pod).into_iter().map(Arc::new).collect();
        let observed = ObservedPod {
            id: pod.id.clone(),
            probes: probes.clone(),
            trouble: None,
        };
        let _ = self.0.lock().insert(pod.id.uid.clone(), observed);
        probes
    }

    /// Removes a pod.
    pub fn remove(&self, uid: &str) {
        let _ = self.0.lock().remove(uid);
    }

    /// Sets why a pod's probes can't be compared; returns whether that has changed.
    pub fn set_trouble(&self, uid: &str, trouble: Option<String>) -> bool {
        let mut pods = self.0.lock();
        let Some(pod) = pods.get_mut(uid) else {
            return false;
        };
        let changed = pod.trouble != trouble;
        pod.trouble = trouble;
        changed
    }

    /// The pods now.
    pub fn all(&self) -> Vec<ObservedPod> {
        self.0.lock().values().cloned().collect()
    }
}

/// Whether a probe of `kind` needs no further comparison after its first success, because the kubelet then
/// stops making it.
pub fn ends_with_success(kind: ProbeKind) -> bool {
    kind == ProbeKind::Startup
}
