//! The endpoints that the handler serves, their routes, and each route's statistics.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::cost::PodCost;
use super::history::{History, Run, now_ms};
use model::{Action, Mesh, PodId, Probe, ProbeMode};
use probe::dial::Dial;
use probe::verdict::{Outcome, Reason, Verdict};

/// A pod as the handler needs it.
pub struct ServedPod {
    /// Its name.
    pub id: PodId,
    /// Its mesh.
    pub mesh: Mesh,
    /// Dials its app.
    pub dialer: Arc<dyn Dial>,
    /// What its checks have cost recently.
    pub cost: Arc<PodCost>,
    /// Maximum number of checks in flight.
    pub max_in_flight: usize,
    /// Checks in flight.
    pub in_flight: AtomicUsize,
}

impl ServedPod {
    /// Admits one more check in flight; `None` when the pod has reached its limit.
    pub fn admit(self: &Arc<Self>) -> Option<InFlight> {
        self.in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                (now < self.max_in_flight).then_some(now + 1)
            })
            .ok()
            .map(|_| InFlight {
                pod: Arc::clone(self),
            })
    }
}

/// Counts as one of the pod's checks in flight until dropped.
pub struct InFlight {
    pod: Arc<ServedPod>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let _ = self.pod.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One check, and all the probes and hooks that declare it.
pub struct Route {
    /// The probes and hooks that declare it. Their requests can't be distinguished, so they share verdicts and counts: two
    /// probes with the same port and target, and on the app's own port all HTTPS or gRPC probes.
    pub members: Vec<Probe>,
    /// What the check does.
    pub action: Action,
    /// The User-Agents that the members declare, if the kubelet does not send its own.
    pub agents: Vec<String>,
    /// The longest of the members' timeouts; `None` for lifecycle hooks.
    pub timeout: Option<Duration>,
    /// The timeouts of other members, which are shorter.
    pub shorter: Vec<Duration>,
    /// How the probes reach the handler.
    pub mode: ProbeMode,
    /// Its verdicts so far.
    pub stats: RouteStats,
}

impl Route {
    /// Whether only lifecycle hooks declare it.
    pub fn is_hook(&self) -> bool {
        self.members.iter().all(|member| member.kind.is_hook())
    }

    /// Whether a lifecycle hook declares it.
    pub fn has_hook(&self) -> bool {
        self.members.iter().any(|member| member.kind.is_hook())
    }

    /// The longest timeout of the probes among the members.
    pub fn probe_timeout(&self) -> Option<Duration> {
        self.timeout.or_else(|| self.shorter.iter().max().copied())
    }

    /// The maximum number of failures in a row that `member` can have. Verdicts may be those of several probes, so a
    /// probe can't have failed more often than its period allows.
    pub fn failures_in_a_row(&self, member: &Probe) -> u32 {
        let state = self.stats.state.lock();
        let counted = state.failures;
        let Some((since, until)) = state.failing_time else {
            return 0;
        };
        drop(state);
        if self.members.len() == 1 && !self.stats.is_shared() {
            return counted;
        }
        counted.min(possible(until - since, member.schedule.period))
    }
}

/// The maximum number of probes that a kubelet can make in this time.
fn possible(time: Duration, period: Duration) -> u32 {
    let periods = (time + period / 2).as_millis() / period.as_millis().max(1);
    u32::try_from(periods).map_or(u32::MAX, |periods| periods.saturating_add(1))
}

/// What a verdict changes, compared with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusChange {
    /// Nothing.
    None,
    /// The probe fails, and before it passed or failed for another reason.
    Fails,
    /// The probe passes, and before it failed.
    PassesAgain,
    /// The probe is relayed because the pod cannot be dialled, and before it was not relayed.
    StandsAside,
}

/// If different checks share a route, it counts as passing again once none has failed for this long: longer than the
/// period of most probes.
const SHARED_PASSES_AFTER: Duration = Duration::from_secs(60);

/// The verdicts of a route.
#[derive(Default)]
pub struct RouteStats {
    /// Whether different checks share the route, so that one may fail while another passes.
    has_different_checks: bool,
    state: Mutex<StatsState>,
    /// Whether verdicts were recorded that may be those of other routes of the port.
    is_shared: AtomicBool,
    success: AtomicU64,
    failure: AtomicU64,
    unknown: AtomicU64,
}

#[derive(Default)]
struct StatsState {
    last: Option<(Instant, Verdict)>,
    /// How it failed last, and when, unless it has passed since then.
    failing: Option<((Reason, u16), Instant)>,
    /// Failures in a row.
    failures: u32,
    /// Times of the first and the last of them.
    failing_time: Option<(Instant, Instant)>,
    history: History,
}

impl RouteStats {
    /// The statistics of a route that has no verdict yet. `has_different_checks`: whether different checks
    /// share it.
    pub fn new(has_different_checks: bool) -> Self {
        Self {
            has_different_checks,
            ..Self::default()
        }
    }

    /// What `verdict`, with this `outcome`, changes compared with those before it.
    pub fn status_change(&self, outcome: Outcome, verdict: &Verdict) -> StatusChange {
        let failing = &mut self.state.lock().failing;
        let mut unless_known = |news| {
            let now = (verdict.reason, verdict.status);
            match failing.replace((now, Instant::now())) {
                Some((before, _)) if before == now => StatusChange::None,
                _ => news,
            }
        };
        match (outcome, verdict.reason) {
            // The kubelet reports an event for an incomplete body too.
            (Outcome::Failure, _) | (_, Reason::BodyIncomplete) => {
                unless_known(StatusChange::Fails)
            }
            (_, Reason::Dial) => unless_known(StatusChange::StandsAside),
            (Outcome::Success, _)
                if self.has_different_checks && failing.is_some_and(is_recent) =>
            {
                StatusChange::None
            }
            (Outcome::Success, _) => match failing.take() {
                Some(_) => StatusChange::PassesAgain,
                None => StatusChange::None,
            },
            // The connection reached the app, which ends an earlier failure to reach it, but not a failure in which the app
            // answered.
            (Outcome::Unknown, Reason::Spliced | Reason::Connected) => {
                *failing = failing
                    .take()
                    .filter(|((reason, _), _)| reason.reached_app());
                StatusChange::None
            }
            (Outcome::Unknown, _) => StatusChange::None,
        }
    }

    /// Whether verdicts were recorded that may be those of other routes of the port.
    pub fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Relaxed)
    }

    /// Records that the container was restarted, so that the kubelet counts from zero again.
    pub fn restarted(&self) {
        let mut state = self.state.lock();
        state.failures = 0;
        state.failing_time = None;
        state.failing = None;
        state.history.end_run();
    }

    /// Records that verdicts are also those of other routes of the port.
    pub fn share(&self) {
        self.is_shared.store(true, Ordering::Relaxed);
    }

    /// Records a verdict. Returns whether it differs from the previous one.
    pub fn record(&self, outcome: Outcome, verdict: Verdict) -> bool {
        let counter = match outcome {
            Outcome::Success => &self.success,
            Outcome::Failure => &self.failure,
            Outcome::Unknown => &self.unknown,
        };
        let _ = counter.fetch_add(1, Ordering::Relaxed);
        let (now, at) = (Instant::now(), now_ms());
        let mut state = self.state.lock();
        match (outcome, verdict.reason) {
            (Outcome::Failure, _) => {
                state.failures = state.failures.saturating_add(1);
                let since = state.failing_time.map_or(now, |(since, _)| since);
                state.failing_time = Some((since, now));
            }
            // The connection reached the app, which ends a failure to reach it, but not one in which the app
            // answered.
            (Outcome::Unknown, Reason::Spliced | Reason::Connected) if state.failing.is_some() => {}
            (Outcome::Success, _) | (_, Reason::Spliced | Reason::Connected) => {
                state.failures = 0;
                state.failing_time = None;
            }
            (Outcome::Unknown, _) => {}
        }
        let changed = state.history.add(at, outcome, &verdict);
        // The previous verdict is dropped after the lock is released.
        let _before = state.last.replace((now, verdict));
        drop(state);
        changed
    }

    /// The history, and the p99 of the last hour, in microseconds.
    pub fn history(&self) -> (Vec<Run>, Option<Duration>) {
        // Allocated before the lock, which the handler takes at each verdict.
        let mut runs = Vec::with_capacity(super::history::RUNS);
        let state = self.state.lock();
        runs.extend(state.history.runs());
        (runs, state.history.p99(now_ms()))
    }

    /// Adds the history that an earlier daemon has recorded.
    pub fn restore(&self, earlier: &[Run]) {
        self.state.lock().history.restore(earlier);
    }

    /// The last verdict, and when it was recorded.
    pub fn last(&self) -> Option<(Instant, Verdict)> {
        self.state.lock().last.clone()
    }

    /// The number of verdicts by outcome: success, failure, unknown.
    pub fn counts(&self) -> (u64, u64, u64) {
        (
            self.success.load(Ordering::Relaxed),
            self.failure.load(Ordering::Relaxed),
            self.unknown.load(Ordering::Relaxed),
        )
    }
}

fn is_recent<T>((_, at): (T, Instant)) -> bool {
    at.elapsed() < SHARED_PASSES_AFTER
}

/// A probed address and port of a pod.
pub struct Endpoint {
    /// Pod IP and port, as the kubelet dials it.
    pub address: SocketAddr,
    /// The pod that it belongs to.
    pub pod: Arc<ServedPod>,
    /// The checks served there.
    pub routes: Routes,
}

/// The checks served on an endpoint. A clone shares the routes.
#[derive(Clone)]
pub enum Routes {
    /// The app's own port.
    Native(NativeRoutes),
    /// An agent's port: from rewritten path (`/app-health/<container>/livez`) to original check.
    Rewritten(HashMap<String, Arc<Route>>),
}

impl Routes {
    /// The longest timeout of the probes; zero if there is none.
    pub fn longest_timeout(&self) -> Duration {
        fn timeout(route: &Arc<Route>) -> Option<Duration> {
            route.timeout
        }
        let longest = match self {
            Self::Rewritten(paths) => paths.values().filter_map(timeout).max(),
            Self::Native(native) => native
                .http
                .values()
                .flat_map(|route| [&route.probe, &route.hook])
                .chain([&native.tcp, &native.https, &native.grpc])
                .filter_map(|route| route.as_ref().and_then(timeout))
                .max(),
        };
        longest.unwrap_or_default()
    }
}

impl Routes {
    /// Every route, in no order.
    pub fn all(&self) -> Vec<&Arc<Route>> {
        match self {
            Self::Rewritten(by_path) => by_path.values().collect(),
            Self::Native(native) => native
                .http
                .values()
                .flat_map(|http| [&http.probe, &http.hook])
                .chain([&native.tcp, &native.https, &native.grpc])
                .flatten()
                .collect(),
        }
    }
}

/// The checks declared on one of the app's own ports.
#[derive(Default, Clone)]
pub struct NativeRoutes {
    /// `tcpSocket`.
    pub tcp: Option<Arc<Route>>,
    /// `httpGet`, plaintext: from request target (path and query) to route.
    pub http: HashMap<String, HttpRoute>,
    /// `httpGet` with scheme HTTPS and any target, because it is spliced.
    pub https: Option<Arc<Route>>,
    /// `grpc` with any service, because it is spliced.
    pub grpc: Option<Arc<Route>>,
}

/// The routes of one plaintext `httpGet` target.
#[derive(Default, Clone)]
pub struct HttpRoute {
    /// Declared by probes.
    pub probe: Option<Arc<Route>>,
    /// Declared by lifecycle hooks, whose User-Agent is `kube-lifecycle/...`.
    pub hook: Option<Arc<Route>>,
}

/// All endpoints, by the address that the kubelet dials.
#[derive(Default)]
pub struct EndpointTable {
    endpoints: RwLock<HashMap<SocketAddr, Arc<Endpoint>>>,
}

impl EndpointTable {
    /// The endpoint at `address`.
    pub fn get(&self, address: SocketAddr) -> Option<Arc<Endpoint>> {
        self.endpoints.read().get(&address).cloned()
    }

    /// Inserts `endpoint`, replacing any other at its address.
    pub fn insert(&self, endpoint: Arc<Endpoint>) {
        let _ = self.endpoints.write().insert(endpoint.address, endpoint);
    }

    /// Removes and returns the endpoint at `address`.
    pub fn remove(&self, address: SocketAddr) -> Option<Arc<Endpoint>> {
        self.endpoints.write().remove(&address)
    }

    /// All endpoints, in no order.
    pub fn all(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.read().values().cloned().collect()
    }

    /// The number of endpoints.
    pub fn len(&self) -> usize {
        self.endpoints.read().len()
    }

    /// Whether there are no endpoints.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests;
