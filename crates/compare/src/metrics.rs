//! Metrics of mode observe.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::{Compared, failing_reason};

/// Labels of a change.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeLabels {
    /// The outcome through the mesh: `success` or `failure`.
    from: &'static str,
    /// The outcome when the mesh is bypassed.
    to: &'static str,
    /// Why the failing check fails ([`probe::verdict::Reason::name`]).
    reason: &'static str,
}

/// Counts comparisons.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    comparisons: Counter,
    changes: Family<ChangeLabels, Counter>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "comparisons",
            "In mode observe: comparisons of a probe through the mesh with the same probe bypassing it.",
            metrics.comparisons.clone(),
        );
        registry.register(
            "would_change",
            "In mode observe: comparisons in which serving the probe would change its result.",
            metrics.changes.clone(),
        );
        metrics
    }

    /// Counts one comparison.
    pub fn count(&self, compared: &Compared) {
        let _ = self.comparisons.inc();
        if compared.change.is_change() {
            let labels = ChangeLabels {
                from: compared.now.outcome(false).name(),
                to: compared.then.outcome(false).name(),
                reason: failing_reason(compared).name(),
            };
            let _ = self.changes.get_or_create(&labels).inc();
        }
    }
}
