//! Bounds a route's check by its timeout and by the kubelet's connection.

use std::future::Future;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::Handler;
use super::answer::hung_up;
use super::note::note;
use super::table::{Endpoint, Route};
use probe::Finding;
use probe::verdict::Reason;

/// When a check of `route` that was accepted at `since` must end: a margin before the kubelet's own timeout,
/// so that our answer arrives in time; `None` for a lifecycle hook.
pub(super) fn deadline(route: &Route, since: Instant) -> Option<Instant> {
    route.timeout.map(|timeout| since + before(timeout))
}

/// `timeout` minus the margin.
fn before(timeout: Duration) -> Duration {
    let margin = (timeout / 100).clamp(Duration::from_millis(5), Duration::from_millis(50));
    timeout.saturating_sub(margin)
}

/// Whether a connection that ended without an answer after `elapsed` was abandoned by the kubelet at the end of the timeout
/// of a probe of `route`. The kubelet's timeout begins when it dials, which may be well before `elapsed` begins. So a
/// connection that ends near the end of the timeout counts as timed out. If several probes share the route, any of their
/// timeouts counts.
pub fn is_timeout(route: &Route, elapsed: Duration) -> bool {
    let is_late = |timeout: Duration| elapsed >= before(timeout) * 9 / 10;
    let ends = |timeout: &Duration| (*timeout * 9 / 10..*timeout * 11 / 10).contains(&elapsed);
    route.timeout.is_some_and(is_late) || route.shorter.iter().any(ends)
}

/// Runs `check` of `route` for a connection that was accepted at `since`, until its deadline or until the kubelet
/// closes the connection.
pub(super) async fn bounded(
    check: impl Future<Output = Finding>,
    kubelet: &TcpStream,
    route: &Route,
    since: Instant,
) -> Finding {
    tokio::select! {
        biased;
        finding = check => finding,
        () = expired(deadline(route, since)) => {
            Finding::without_answer(Reason::TimedOut, "no complete answer within the probe's timeout")
        }
        () = hung_up(kubelet) => given_up(route, since.elapsed()),
    }
}

/// The finding for a check of `route` whose connection the kubelet has closed after `elapsed`.
pub fn given_up(route: &Route, elapsed: Duration) -> Finding {
    match is_timeout(route, elapsed) {
        true => Finding::without_answer(
            Reason::TimedOut,
            "no complete answer before the kubelet closed its connection at the end of the probe's timeout",
        ),
        false => Finding::without_answer(
            Reason::Cancelled,
            "the kubelet closed its connection before the answer",
        ),
    }
}

/// Returns at `deadline`; never returns if there is no deadline.
pub(super) async fn expired(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Handler {
    /// Records the finding of a check of `route`, accepted at `since`.
    pub(super) fn conclude(
        &self,
        endpoint: &Endpoint,
        route: &Route,
        finding: Finding,
        since: Instant,
    ) {
        note(
            &self.metrics,
            &endpoint.pod.id,
            route,
            finding.verdict(since),
        );
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::time::advance;

    use super::*;
    use model::{Action, ProbeMode};

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn route(timeout: Option<Duration>) -> Route {
        Route {
            members: Vec::new(),
            action: Action::Tcp { port: 80 },
            agents: Vec::new(),
            timeout,
            shorter: Vec::new(),
            mode: ProbeMode::Transparent,
            stats: Default::default(),
        }
    }

    /// Our end of a connection that the kubelet has closed, once the end of the stream can be read.
    async fn abandoned() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let address = listener.local_addr().expect("address");
        let kubelet = TcpStream::connect(address).await.expect("connected");
        let (ours, _) = listener.accept().await.expect("accepted");
        drop(kubelet);
        ours.readable().await.expect("readable");
        ours
    }

    #[tokio::test]
    async fn a_kubelet_that_hangs_up_near_the_end_of_the_timeout_saw_a_timeout() {
        let ours = abandoned().await;
        tokio::time::pause();
        let since = Instant::now();
        let mut route = route(Some(TIMEOUT));
        for (elapsed, reason) in [
            (Duration::from_secs(0), Reason::Cancelled),
            (Duration::from_millis(8_900), Reason::Cancelled),
            (Duration::from_millis(9_100), Reason::TimedOut),
            // Both have happened by the time we look.
            (Duration::from_secs(11), Reason::TimedOut),
        ] {
            advance(elapsed.saturating_sub(since.elapsed())).await;
            let found = bounded(std::future::pending(), &ours, &route, since).await;
            assert_eq!(found.reason, reason, "after {elapsed:?}");
        }
        route.timeout = None;
        let hook = bounded(std::future::pending(), &ours, &route, since).await;
        assert_eq!(hook.reason, Reason::Cancelled, "it has no timeout");
    }

    #[tokio::test]
    async fn a_shorter_timeout_of_a_probe_that_shares_the_route_counts_too() {
        let ours = abandoned().await;
        tokio::time::pause();
        let since = Instant::now();
        let mut route = route(Some(TIMEOUT));
        route.shorter = vec![Duration::from_secs(1), Duration::from_secs(3)];
        for (millis, reason) in [
            (800, Reason::Cancelled),
            (950, Reason::TimedOut),
            (1_050, Reason::TimedOut),
            (2_000, Reason::Cancelled),
            (3_010, Reason::TimedOut),
            (5_000, Reason::Cancelled),
            (9_950, Reason::TimedOut),
        ] {
            advance(Duration::from_millis(millis).saturating_sub(since.elapsed())).await;
            let found = bounded(std::future::pending(), &ours, &route, since).await;
            assert_eq!(found.reason, reason, "after {millis} ms");
        }
    }
}
