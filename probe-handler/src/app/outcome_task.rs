//! Records, as results of probes, the outcomes of connections that do not pass through the handler: refusals by the
//! programs, and connections on the kernel path.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use kernel::maps::{Answer, ConnectionOutcome, OutcomeRing};
use model::{Action, PodId};
use probe::verdict::{Reason, Verdict};
use probe::{Finding, grpc};
use serve::metrics::Metrics;
use serve::note::note;
use serve::table::{Endpoint, EndpointTable, Route};
use serve::{given_up, is_timeout};

/// Interval between reads of the ring buffer, which has room for more than a thousand outcomes. Each request for the status
/// reads it too.
const PERIOD: Duration = Duration::from_millis(50);

/// The outcomes from the kernel, and where they are recorded.
pub struct Outcomes {
    /// The outcomes from the kernel.
    pub ring: OutcomeRing,
    /// The served endpoints.
    pub table: Arc<EndpointTable>,
    /// The metrics that count them.
    pub metrics: Arc<Metrics>,
    /// Sends the endpoints to which the kubelet could not connect.
    pub refused: mpsc::Sender<(PodId, SocketAddr)>,
}

impl Outcomes {
    /// Records the outcomes since the last call.
    pub fn note(&self) {
        for (address, outcome) in self.ring.take() {
            let Some(endpoint) = self.table.get(address) else {
                continue; // its pod was removed meanwhile
            };
            if !matches!(outcome, ConnectionOutcome::Established(_)) {
                // If the channel is full, the next refusal is sent instead.
                let _ = self.refused.try_send((endpoint.pod.id.clone(), address));
            }
            record(address, outcome, &endpoint, &self.metrics);
        }
    }

    /// Records outcomes periodically. Never returns.
    pub async fn follow(&self) {
        let mut looks = interval(PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let _ = looks.tick().await;
            self.note();
        }
    }
}

/// Records the outcome for the probes of the port. At connect time it is not known which probe of the port the kubelet
/// makes. If the connection fails, each of them fails; if it succeeds, that is recorded only if the port has no other
/// probe.
fn record(address: SocketAddr, outcome: ConnectionOutcome, endpoint: &Endpoint, metrics: &Metrics) {
    let routes = endpoint.routes.all();
    let is_connected = matches!(
        outcome,
        ConnectionOutcome::Established(_) | ConnectionOutcome::Answered(..)
    );
    if is_connected && routes.len() > 1 {
        return;
    }
    let is_shared = routes.len() > 1;
    for route in routes {
        if is_shared {
            route.stats.share();
        }
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
        ConnectionOutcome::Answered(answer, after) => (answered(answer, after, route), Some(after)),
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

fn answered(answer: Answer, after: Duration, route: &Route) -> Finding {
    let is_grpc = matches!(route.action, Action::Grpc { .. });
    match answer {
        // The kubelet may follow the redirect on another connection, whose answer is the result.
        Answer::Http(status @ (301..=303 | 307 | 308)) if !route.is_hook() => {
            let detail = format!("the app answered with a redirect (HTTP {status})");
            Finding::without_answer(Reason::Connected, detail)
        }
        Answer::Http(status) => Finding::answered(status),
        Answer::Grpc(status) => grpc::answered(status),
        Answer::GrpcFailed => {
            let detail = "the call failed; its code is not read on the kernel path";
            Finding::without_answer(Reason::GrpcStatus, detail)
        }
        Answer::Invalid => {
            let protocol = if is_grpc { "HTTP/2" } else { "HTTP/1" };
            let detail = format!("the app's answer is not {protocol}");
            Finding::without_answer(Reason::BadResponse, detail)
        }
        Answer::Closed => {
            let detail = "the app closed the connection before its answer was complete";
            Finding::without_answer(Reason::ConnectionClosed, detail)
        }
        Answer::GivenUp => given_up(route, after),
        Answer::Unread => {
            let detail = "connected on the kernel path; the app's answer has an unusual form, which is not read there";
            Finding::without_answer(Reason::Connected, detail)
        }
    }
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
    use probe::verdict::Outcome;

    use model::{ProbeKind, ProbeMode, Scheme};
    use serve::metrics::fixtures::member;

    fn route(action: Action) -> Route {
        Route {
            members: vec![member(ProbeKind::Liveness, action.clone())],
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

    fn http() -> Action {
        Action::Http {
            scheme: Scheme::Http,
            port: 80,
            target: "/".to_owned(),
            headers: Vec::new(),
        }
    }

    #[test]
    fn an_answer_is_a_verdict() {
        let grpc = || Action::Grpc {
            port: 80,
            service: String::new(),
        };
        for (answer, action, expected) in [
            (Answer::Http(200), http(), (Reason::Healthy, 200)),
            (Answer::Http(503), http(), (Reason::HttpStatus, 503)),
            (Answer::Http(304), http(), (Reason::Healthy, 304)),
            (Answer::Http(101), http(), (Reason::HttpStatus, 101)),
            (Answer::Http(302), http(), (Reason::Connected, 200)),
            (Answer::Unread, http(), (Reason::Connected, 200)),
            (Answer::Invalid, http(), (Reason::BadResponse, 500)),
            (Answer::Closed, http(), (Reason::ConnectionClosed, 500)),
            (Answer::Grpc(1), grpc(), (Reason::Healthy, 200)),
            (Answer::Grpc(0), grpc(), (Reason::NotServing, 500)),
            (Answer::Grpc(2), grpc(), (Reason::NotServing, 500)),
            (Answer::GrpcFailed, grpc(), (Reason::GrpcStatus, 500)),
        ] {
            let finding = answered(answer, Duration::from_millis(1), &route(action));
            assert_eq!((finding.reason, finding.status), expected, "{answer:?}");
        }
    }

    #[test]
    fn a_hook_passes_with_any_status() {
        let mut hook = route(http());
        hook.members = vec![member(ProbeKind::PreStop, http())];
        for status in [200, 302, 503] {
            let finding = answered(Answer::Http(status), Duration::ZERO, &hook);
            assert!(finding.reason.reached_app(), "{status}");
            let verdict = finding.verdict_after(Duration::ZERO);
            assert_eq!(verdict.outcome(hook.is_hook()), Outcome::Success);
        }
    }

    #[test]
    fn a_connection_that_the_kubelet_closes_without_an_answer_has_timed_out_or_is_cancelled() {
        for (millis, expected) in [
            (500, Reason::Cancelled),
            (1_000, Reason::TimedOut),
            (5_000, Reason::TimedOut),
        ] {
            let outcome =
                ConnectionOutcome::Answered(Answer::GivenUp, Duration::from_millis(millis));
            assert_eq!(reason(outcome, http()), expected, "{millis} ms");
        }
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
