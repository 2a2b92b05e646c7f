//! Records the outcomes of connections that the handler does not see as results of probes: refusals by the programs, and
//! connections on the kernel path.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use kernel::maps::{ConnectionOutcome, OutcomeRing};
use model::Action;
use probe::Finding;
use probe::verdict::{Reason, Verdict};
use serve::is_timeout;
use serve::metrics::Metrics;
use serve::note::note;
use serve::table::{EndpointTable, Route};

/// Interval between looks; each request of the status looks too. The ring buffer has room for more than a thousand outcomes.
const PERIOD: Duration = Duration::from_millis(50);

/// The outcomes from the kernel, and where they are recorded.
pub struct Outcomes {
    /// The outcomes from the kernel.
    pub ring: OutcomeRing,
    /// The served endpoints.
    pub table: Arc<EndpointTable>,
    /// The metrics that count them.
    pub metrics: Arc<Metrics>,
}

impl Outcomes {
    /// Records the outcomes since the last call.
    pub fn note(&self) {
        for (address, outcome) in self.ring.take() {
            record(address, outcome, &self.table, &self.metrics);
        }
    }

    /// Records outcomes periodically, without end.
    pub async fn follow(&self) {
        let mut looks = interval(PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let _ = looks.tick().await;
            self.note();
        }
    }
}

/// Records the outcome for the probes of the port. At connect time it is not known which of them the kubelet makes: if the
/// app cannot be connected, each of them fails; if it can, that is recorded only if there is no other.
fn record(
    address: SocketAddr,
    outcome: ConnectionOutcome,
    table: &EndpointTable,
    metrics: &Metrics,
) {
    let Some(endpoint) = table.get(address) else {
        return; // its pod was removed meanwhile
    };
    let routes = endpoint.routes.all();
    if matches!(outcome, ConnectionOutcome::Established(_)) && routes.len() > 1 {
        return;
    }
    for route in routes {
        note(
            metrics,
            &endpoint.pod.id,
            route,
            verdict(address, outcome, route),
        );
    }
}

fn verdict(address: SocketAddr, outcome: ConnectionOutcome, route: &Route) -> Verdict {
    let (finding, latency) = match outcome {
        ConnectionOutcome::Refused => {
            let detail = format!("nothing listens on {address}; refused in the kernel");
            (Finding::without_answer(Reason::Refused, detail), None)
        }
        ConnectionOutcome::Established(after) => (established(route), Some(after)),
        ConnectionOutcome::Ended(after) => (ended(address, after, route), Some(after)),
    };
    Verdict {
        reason: finding.reason,
        status: finding.status,
        detail: finding.detail,
        latency,
    }
}

fn established(route: &Route) -> Finding {
    if matches!(route.action, Action::Tcp { .. }) {
        return Finding::healthy("connected");
    }
    let detail = "connected on the kernel path; the daemon does not see the answer";
    Finding::without_answer(Reason::Connected, detail)
}

fn ended(address: SocketAddr, after: Duration, route: &Route) -> Finding {
    if is_timeout(route, after) {
        let detail =
            format!("{address} did not answer the kubelet's SYN within the probe's timeout");
        return Finding::without_answer(Reason::TimedOut, detail);
    }
    let detail = format!("{address} refused the connection");
    Finding::without_answer(Reason::Refused, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ProbeMode;

    fn route(action: Action) -> Route {
        Route {
            members: Vec::new(),
            action,
            agents: Vec::new(),
            timeout: Some(Duration::from_secs(5)),
            shorter: vec![Duration::from_secs(1)],
            mode: ProbeMode::Transparent,
            stats: Default::default(),
        }
    }

    fn reason(outcome: ConnectionOutcome, action: Action) -> Reason {
        let address = SocketAddr::from(([10, 0, 0, 1], 80));
        verdict(address, outcome, &route(action)).reason
    }

    #[test]
    fn an_established_connection_is_a_verdict_for_tcp_probes_only() {
        let established = ConnectionOutcome::Established(Duration::from_millis(1));
        let tcp = Action::Tcp { port: 80 };
        let grpc = Action::Grpc {
            port: 80,
            service: String::new(),
        };
        assert_eq!(reason(established, tcp), Reason::Healthy);
        assert_eq!(reason(established, grpc), Reason::Connected);
    }

    #[test]
    fn a_connection_that_ends_at_a_timeout_was_given_up() {
        for (millis, expected) in [
            (0, Reason::Refused),
            (500, Reason::Refused),
            (1_000, Reason::TimedOut),
            (3_000, Reason::Refused),
            (4_990, Reason::TimedOut),
            (6_000, Reason::TimedOut),
        ] {
            let ended = ConnectionOutcome::Ended(Duration::from_millis(millis));
            let tcp = Action::Tcp { port: 80 };
            assert_eq!(reason(ended, tcp), expected, "{millis} ms");
        }
    }
}
