//! Brings the kernel's own verdicts to the probes they were given for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use kernel::maps::RefusalRing;
use probe::verdict::{Reason, Verdict};
use serve::metrics::Metrics;
use serve::note::note;
use serve::table::EndpointTable;

/// How often to look; whoever asks for the status looks too. The ring buffer has room for thousands.
const PERIOD: Duration = Duration::from_millis(50);

/// The kernel's refusals, and where they are noted.
pub struct Refusals {
    /// What the kernel says.
    pub ring: RefusalRing,
    /// What is served.
    pub table: Arc<EndpointTable>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
}

impl Refusals {
    /// Notes those since the last time.
    pub fn note(&self) {
        for address in self.ring.take() {
            record(address, &self.table, &self.metrics);
        }
    }

    /// Notes them for ever.
    pub async fn follow(&self) {
        let mut looks = interval(PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let _ = looks.tick().await;
            self.note();
        }
    }
}

/// At connect time nobody knows which of a port's probes it is, and it makes no difference: the port is
/// closed to each of them.
fn record(address: SocketAddr, table: &EndpointTable, metrics: &Metrics) {
    let Some(endpoint) = table.get(address) else {
        return; // its pod went in the meantime
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
