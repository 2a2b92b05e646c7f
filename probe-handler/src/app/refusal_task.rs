//! Brings the kernel's own verdicts to the probes they were given for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::check::verdict::{Reason, Verdict};
use crate::handler::table::EndpointTable;
use crate::kernel::maps::RefusalStream;
use crate::observe::metrics::Metrics;

/// Records each refusal, for ever.
///
/// # Errors
/// Those of the runtime's reactor.
pub async fn run(
    mut refusals: RefusalStream,
    table: Arc<EndpointTable>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    loop {
        let refused = refusals
            .next()
            .await
            .context("the kernel's record of refusals ended")?;
        for address in refused {
            record(address, &table, &metrics);
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
        tracing::info!(
            pod = %endpoint.pod.id,
            container = route.container_label(),
            probe = route.kind_label(),
            reason = Reason::Refused.name(),
            "probe failed: nothing in the pod listens on {address}"
        );
        let verdict = Verdict {
            reason: Reason::Refused,
            status: 500,
            detail: format!("nothing listens on {address}; refused in the kernel"),
            latency: Duration::ZERO,
        };
        metrics.verdict(&endpoint.pod.id, route, verdict);
    }
}
