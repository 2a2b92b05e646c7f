//! Records the kernel's refusals as results of the refused probes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use kernel::maps::RefusalRing;
use probe::verdict::{Reason, Verdict};
use serve::metrics::Metrics;
use serve::note::note;
use serve::table::EndpointTable;

/// Interval between looks; each request of the status looks too. The ring buffer has room for thousands of refusals.
const PERIOD: Duration = Duration::from_millis(50);

/// The kernel's refusals, and where they are recorded.
pub struct Refusals {
    /// The refusals from the kernel.
    pub ring: RefusalRing,
    /// The served endpoints.
    pub table: Arc<EndpointTable>,
    /// The metrics that count them.
    pub metrics: Arc<Metrics>,
}

impl Refusals {
    /// Records the refusals since the last call.
    pub fn note(&self) {
        for address in self.ring.take() {
            record(address, &self.table, &self.metrics);
        }
    }

    /// Records refusals periodically, without end.
    pub async fn follow(&self) {
        let mut looks = interval(PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let _ = looks.tick().await;
            self.note();
        }
    }
}

/// Records a refusal for every probe of the port: at connect time it is not known which of them the kubelet makes, and the
/// port is closed for each.
fn record(address: SocketAddr, table: &EndpointTable, metrics: &Metrics) {
    let Some(endpoint) = table.get(address) else {
        return; // its pod was removed meanwhile
    };
    for route in endpoint.routes.all() {
        let verdict = Verdict {
            reason: Reason::Refused,
            status: 500,
            detail: format!("nothing listens on {address}; refused in the kernel"),
            latency: None,
        };
        note(metrics, &endpoint.pod.id, route, verdict);
    }
}
