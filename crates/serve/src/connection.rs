//! Serves one connection from the kubelet to an endpoint, from its first bytes to its end.

use std::borrow::Cow;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::answer::{self, reset, reset_on_drop};
use super::classify::{Decision, decide};
use super::grpc_answer::Recording;
use super::idle::Watch;
use super::note::note;
use super::observed::Observer;
use super::relay::{copy_bidirectional, relay};
use super::run::{bounded, deadline, expired, given_up};
use super::table::{Endpoint, NativeRoutes, Route, Routes};
use super::{Handler, drained};
use model::{Action, ProbeMode};
use probe::dial::dial;
use probe::http::HttpCheck;
use probe::request::Request;
use probe::verdict::Reason;
use probe::{Finding, grpc, tcp};

/// How long to wait for the first bytes if no probe of the endpoint has a longer timeout.
pub(super) const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(1);

/// How many bytes of the kubelet are read while the app is being dialled: more than any ClientHello has.
const SPLICE_BYTES: usize = 64 * 1024;

/// How long a splice may go on after the kubelet has ended its side.
const SPLICE_GRACE: Duration = Duration::from_secs(1);

/// How long a splice must have been idle to be closed while the handler drains.
const QUIET: Duration = Duration::from_millis(100);

/// Detail of a verdict about a pod whose sockets may be in a guest.
const ELSEWHERE: &str = "neither app nor pilot-agent listens in the pod's network namespace: the app runs in a guest, or \
    has not started yet";

/// One connection.
pub(super) struct Connection<'a> {
    pub(super) handler: &'a Handler,
    pub(super) endpoint: &'a Endpoint,
    pub(super) kubelet: TcpStream,
    /// What the kubelet has sent so far.
    pub(super) bytes: Vec<u8>,
    /// When the connection was accepted.
    pub(super) since: Instant,
}

impl Connection<'_> {
    /// Serves the connection to its end, according to the `decision` about its first bytes.
    pub(super) async fn serve(mut self, decision: Option<Decision>) {
        let pod = &self.endpoint.pod;
        let Some(decision) = decision else {
            if let Routes::Native(NativeRoutes { tcp: Some(tcp), .. }) = &self.endpoint.routes {
                self.handler.connected(self.endpoint, tcp, self.since);
            }
            return;
        };
        match decision {
            Decision::More | Decision::Relay => {
                debug!(address = %self.endpoint.address, "relaying connection: it matches no declared probe");
                self.relay("undeclared").await;
            }
            Decision::Splice(route) => {
                let spliced = match pod.admit() {
                    Some(_permit) => Box::pin(self.splice(&route)).await,
                    None => Err(overloaded()),
                };
                match spliced {
                    Ok((finding, latency)) => {
                        let verdict = finding.verdict_after(latency);
                        note(&self.handler.metrics, &pod.id, &route, verdict);
                    }
                    Err(finding) if finding.reason == Reason::Dial => {
                        self.relay_undialled(&route, finding).await;
                    }
                    Err(finding) => {
                        self.conclude(&route, finding);
                        reset(self.kubelet);
                    }
                }
            }
            Decision::Check(route) => {
                let mut spent = None;
                let finding = match pod.admit() {
                    Some(_permit) => self.check(&route, &mut spent).await,
                    None => overloaded(),
                };
                if finding.reason == Reason::Dial {
                    self.relay_undialled(&route, finding).await;
                } else if finding.reason == Reason::Refused && self.is_elsewhere(&route).await {
                    self.conclude(&route, Finding::without_answer(Reason::Dial, ELSEWHERE));
                    self.relay("elsewhere").await;
                } else {
                    self.answer(&route, finding, spent).await;
                }
            }
        }
    }

    /// Reads until the bytes are enough to classify the connection, or cannot become enough. `None`: the
    /// kubelet closed the connection without sending a byte.
    pub(super) async fn first_bytes(&mut self) -> Option<Decision> {
        let by_agent = self.handler.shared_process.load(Ordering::Relaxed);
        let patience = self.since
            + self
                .endpoint
                .routes
                .longest_timeout()
                .max(FIRST_BYTES_TIMEOUT);
        loop {
            let read = tokio::select! {
                biased;
                read = self.kubelet.read_buf(&mut self.bytes) => read,
                // A client that waits for the server to send first is not a probe.
                () = expired(Some(patience)) => return Some(Decision::Relay),
            };
            match read {
                Ok(1..) => match decide(&self.endpoint.routes, &self.bytes, by_agent) {
                    Decision::More => {}
                    decision => return Some(decision),
                },
                _ if self.bytes.is_empty() => return None,
                // The kubelet may only have ended its side: relay what it sent.
                _ => return Some(Decision::Relay),
            }
        }
    }

    /// Executes the check of `route` for the request in `bytes`. `spent`: see [`HttpCheck::run`].
    async fn check(&self, route: &Route, spent: &mut Option<TcpStream>) -> Finding {
        let deadline = deadline(route, self.since);
        let dialer = &*self.endpoint.pod.dialer;
        let visited = self.endpoint.address;
        let address = SocketAddr::new(visited.ip(), route.action.port());
        let check = async {
            let Ok(Some(request)) = Request::parse(&self.bytes) else {
                return Finding::without_answer(
                    Reason::BadResponse,
                    "the request head is malformed",
                );
            };
            match &route.action {
                Action::Http { scheme, target, .. } => {
                    let head = match &self.endpoint.routes {
                        Routes::Native(_) => Cow::Borrowed(&self.bytes),
                        Routes::Rewritten(_) => {
                            Cow::Owned(request.rewritten(target, visited.port(), address.port()))
                        }
                    };
                    let check = HttpCheck {
                        dialer,
                        address,
                        scheme: *scheme,
                        head: &head,
                        hook: route.is_hook(),
                        deadline,
                    };
                    let connection = dial(dialer, address).await;
                    check.run(connection, spent).await
                }
                Action::Tcp { .. } => tcp::check(dialer, address).await,
                Action::Grpc { service, .. } => {
                    let agent = request.header("user-agent");
                    let check =
                        |redial| grpc::check(dialer, address, service, agent, deadline, redial);
                    let found = Box::pin(check(false)).await;
                    // Dial again only if the app may be in this namespace at all.
                    match found.reason {
                        Reason::Refused if !self.is_elsewhere(route).await => {
                            Box::pin(check(true)).await
                        }
                        _ => found,
                    }
                }
            }
        };
        bounded(check, &self.kubelet, route, self.since).await
    }

    /// Relays the connection through the mesh: the pod could not be dialled because of the node (its namespace
    /// has lost the address, no descriptors are left, ...), so the check shows nothing about the app.
    async fn relay_undialled(self, route: &Route, finding: Finding) {
        self.handler.reserve.use_if_needed();
        self.conclude(route, finding);
        self.relay("not_dialled").await;
    }

    /// Whether the pod's sockets are in a guest, as under Kata. Without this daemon, pilot-agent would answer these
    /// probes. If it does not listen in the pod's network namespace either, a refusal there shows nothing about the app.
    async fn is_elsewhere(&self, route: &Route) -> bool {
        let agent = dial(&*self.endpoint.pod.dialer, self.endpoint.address);
        route.mode == ProbeMode::Takeover
            && tokio::select! {
                biased;
                agent = agent => agent.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused),
                () = sleep(FIRST_BYTES_TIMEOUT) => false,
            }
    }

    /// Relays the connection to the address that the kubelet dialled; counts it under reason `why`.
    async fn relay(self, why: &'static str) {
        self.handler.metrics.relayed(why);
        Box::pin(relay(self.kubelet, self.endpoint.address, &self.bytes)).await;
    }

    /// Records the finding, answers the kubelet if it still waits, and closes `spent`.
    async fn answer(mut self, route: &Route, finding: Finding, spent: Option<TcpStream>) {
        let Finding { reason, status, .. } = finding;
        self.conclude(route, finding);
        if reason == Reason::Cancelled {
            return;
        }
        // The kubelet treats any status of a lifecycle hook as success.
        if route.is_hook() && !reason.reached_app() {
            reset(self.kubelet);
        } else {
            let sent =
                answer::send(&mut self.kubelet, status, reason != Reason::BodyIncomplete).await;
            let drained = async {
                if sent.is_ok() {
                    answer::drain(self.kubelet).await;
                }
            };
            let _ended = tokio::join!(drained, answer::close_app(spent));
        }
    }

    /// Copies bytes between the kubelet and the app, both ways. Returns the result, and how long it took.
    ///
    /// # Errors
    /// Why the app could not be dialled, or that the kubelet did not wait for it.
    async fn splice(&mut self, route: &Route) -> Result<(Finding, Duration), Finding> {
        let deadline = deadline(route, self.since);
        let mut dialling = pin!(dial(&*self.endpoint.pod.dialer, self.endpoint.address));
        let dialled = loop {
            let wants_more = self.bytes.len() < SPLICE_BYTES;
            tokio::select! {
                biased;
                dialled = &mut dialling => break dialled,
                () = expired(deadline) => {
                    break Err(io::ErrorKind::TimedOut.into());
                }
                read = self.kubelet.read_buf(&mut self.bytes), if wants_more => {
                    if !matches!(read, Ok(1..)) {
                        return Err(given_up(route, self.since.elapsed()));
                    }
                }
            }
        };
        let mut app = dialled.map_err(|error| Finding::dial(&error))?;
        if answer::is_gone(&self.kubelet) {
            reset(app);
            return Err(given_up(route, self.since.elapsed()));
        }
        // Hooks are HTTP, so a connection has at most one of them.
        let watch = route.has_hook().then(|| Watch::new(&self.bytes));
        let recording = matches!(route.action, Action::Grpc { .. }).then(Recording::new);
        let observer = match (&recording, &watch) {
            (Some(recording), _) => Some(recording as &dyn Observer),
            (None, watch) => watch.as_ref().map(|watch| watch as &dyn Observer),
        };
        let may_be_probe = route.probe_timeout().map(|timeout| self.since + timeout);
        let idle = idle_in_drain(self.handler, watch.as_ref(), may_be_probe);
        let copied = async {
            app.write_all(&self.bytes).await?;
            let grace = Some(SPLICE_GRACE);
            copy_bidirectional(&mut self.kubelet, &mut app, grace, observer).await
        };
        let spliced = tokio::select! {
            copied = copied => copied,
            () = idle => Ok(()),
        };
        if spliced.is_err() {
            reset(app);
            reset_on_drop(&self.kubelet);
        }
        if let Some(recording) = recording {
            return Ok(recording.finding(route, self.since).await);
        }
        let detail = match &spliced {
            Ok(()) => String::new(),
            Err(error) => format!("connection failed: {error}"),
        };
        let finding = Finding::without_answer(Reason::Spliced, detail);
        Ok((finding, self.since.elapsed()))
    }

    fn conclude(&self, route: &Route, finding: Finding) {
        self.handler
            .conclude(self.endpoint, route, finding, self.since);
    }
}

/// Returns once the handler drains and the splice is an idle connection, which the kubelet's client of lifecycle hooks
/// keeps for reuse. Until `may_be_probe` it may be a probe. Never returns without a `watch`, because a probe closes its
/// connection itself.
async fn idle_in_drain(handler: &Handler, watch: Option<&Watch>, may_be_probe: Option<Instant>) {
    let Some(watch) = watch else {
        return pending().await;
    };
    drained(&mut handler.drain.subscribe()).await;
    if let Some(end) = may_be_probe {
        sleep_until(end).await;
    }
    while watch.idle_for().is_none_or(|idle| idle < QUIET) {
        sleep(QUIET).await;
    }
}

fn overloaded() -> Finding {
    Finding::without_answer(
        Reason::Overloaded,
        "the pod has reached its limit of checks in flight",
    )
}
