//! Executing a route's check within its time, for as long as the kubelet waits for it.

use std::future::Future;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use super::Handler;
use super::answer::hung_up;
use super::table::{Endpoint, Route};
use crate::check::Finding;
use crate::check::verdict::{Outcome, Reason};

/// When a check of `route` that was accepted at `since` must be over: a margin before the kubelet itself
/// gives up, so that it hears our answer; never, for a lifecycle hook.
pub(super) fn deadline(route: &Route, since: Instant) -> Option<Instant> {
    let timeout = route.timeout?;
    let margin = (timeout / 100).clamp(Duration::from_millis(5), Duration::from_millis(50));
    Some(since + timeout.saturating_sub(margin))
}

/// What `check` finds, unless `deadline` comes or the kubelet hangs up before.
pub(super) async fn bounded(
    check: impl Future<Output = Finding>,
    kubelet: &TcpStream,
    deadline: Option<Instant>,
) -> Finding {
    tokio::select! {
        biased;
        finding = check => finding,
        () = hung_up(kubelet) => Finding::without_answer(Reason::Cancelled, "the kubelet hung up"),
        () = expired(deadline) => {
            Finding::without_answer(Reason::TimedOut, "no whole answer within the probe's timeout")
        }
    }
}

/// Returns at `deadline`; never, where there is none.
pub(super) async fn expired(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Handler {
    /// Logs and counts what was found on `route`, accepted at `since`.
    pub(super) fn conclude(
        &self,
        endpoint: &Endpoint,
        route: &Route,
        finding: Finding,
        since: Instant,
    ) {
        let verdict = finding.verdict(since);
        let pod = &endpoint.pod.id;
        if verdict.outcome(route.is_hook()) == Outcome::Failure {
            info!(
                %pod,
                container = route.container_label(),
                probe = route.kind_label(),
                reason = verdict.reason.name(),
                detail = verdict.detail,
                "probe failed"
            );
        } else {
            debug!(
                %pod,
                ?route.members,
                reason = verdict.reason.name(),
                detail = verdict.detail,
                "probe answered"
            );
        }
        self.metrics.verdict(pod, route, verdict);
    }
}
