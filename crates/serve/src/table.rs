//! The endpoints that the handler serves, their routes, and each route's statistics.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::cost::PodCost;
use model::{Action, Mesh, PodId, ProbeKind, ProbeMode};
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
    /// Most checks that may be in flight at once.
    pub max_in_flight: usize,
    /// Checks in flight.
    pub in_flight: AtomicUsize,
}

impl ServedPod {
    /// Admits one more check in flight; none when the pod has reached its limit.
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
    /// (container, kind) of each declaration. Two probes with the same port and target send the same
    /// requests, so they share the route, and with it verdicts and counts.
    pub members: Vec<(String, ProbeKind)>,
    /// What the check does.
    pub action: Action,
    /// The User-Agents that the members declare, where the kubelet does not send its own.
    pub agents: Vec<String>,
    /// The longest of the members' timeouts; none for lifecycle hooks.
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
        self.members.iter().all(|(_, kind)| kind.is_hook())
    }

    /// The members' containers, each once, joined with `+`: metric label and `status` column.
    pub fn container_label(&self) -> String {
        let mut names: Vec<_> = self
            .members
            .iter()
            .map(|(container, _)| container.as_str())
            .collect();
        names.dedup();
        names.join("+")
    }

    /// The members' kinds, each once, joined with `+` (`liveness+readiness`).
    pub fn kind_label(&self) -> String {
        let mut kinds: Vec<_> = self.members.iter().map(|(_, kind)| *kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
            .iter()
            .map(|kind| kind.name())
            .collect::<Vec<_>>()
            .join("+")
    }
}

/// What a verdict changes, compared with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusChange {
    /// Nothing.
    None,
    /// The probe fails, and did not before, or did for another reason.
    Fails,
    /// The probe passes, and did not before.
    PassesAgain,
    /// The probe is relayed because the pod cannot be dialled, and was not before.
    StandsAside,
}

/// The verdicts of a route.
#[derive(Default)]
pub struct RouteStats {
    last: Mutex<Option<(Instant, Verdict)>>,
    /// How it failed last, unless it has passed since then.
    failing: Mutex<Option<(Reason, u16)>>,
    success: AtomicU64,
    failure: AtomicU64,
    unknown: AtomicU64,
}

impl RouteStats {
    /// What `verdict`, with this `outcome`, changes compared with those before it.
    pub fn status_change(&self, outcome: Outcome, verdict: &Verdict) -> StatusChange {
        let mut failing = self.failing.lock();
        let mut unless_known = |news| {
            let now = Some((verdict.reason, verdict.status));
            match std::mem::replace(&mut *failing, now) == now {
                true => StatusChange::None,
                false => news,
            }
        };
        match (outcome, verdict.reason) {
            // The kubelet reports an event for an incomplete body too.
            (Outcome::Failure, _) | (_, Reason::BodyIncomplete) => {
                unless_known(StatusChange::Fails)
            }
            (_, Reason::Dial) => unless_known(StatusChange::StandsAside),
            (Outcome::Success, _) => match failing.take() {
                Some(_) => StatusChange::PassesAgain,
                None => StatusChange::None,
            },
            // The connection reached the app, so the earlier failure is over.
            (Outcome::Unknown, Reason::Spliced | Reason::Connected) => {
                *failing = None;
                StatusChange::None
            }
            (Outcome::Unknown, _) => StatusChange::None,
        }
    }

    /// Records a verdict.
    pub fn record(&self, outcome: Outcome, verdict: Verdict) {
        let counter = match outcome {
            Outcome::Success => &self.success,
            Outcome::Failure => &self.failure,
            Outcome::Unknown => &self.unknown,
        };
        let _ = counter.fetch_add(1, Ordering::Relaxed);
        *self.last.lock() = Some((Instant::now(), verdict));
    }

    /// The last verdict, and when it was recorded.
    pub fn last(&self) -> Option<(Instant, Verdict)> {
        self.last.lock().clone()
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
mod tests {
    use super::*;

    #[test]
    fn only_a_change_of_the_result_is_reported() {
        let stats = RouteStats::default();
        for (reason, status, news) in [
            (Reason::Healthy, 200, StatusChange::None),
            (Reason::HttpStatus, 503, StatusChange::Fails),
            (Reason::HttpStatus, 503, StatusChange::None),
            // Another status, another reason.
            (Reason::HttpStatus, 500, StatusChange::Fails),
            (Reason::Refused, 500, StatusChange::Fails),
            (Reason::Cancelled, 500, StatusChange::None),
            (Reason::Refused, 500, StatusChange::None),
            (Reason::Healthy, 204, StatusChange::PassesAgain),
            (Reason::Healthy, 200, StatusChange::None),
            (Reason::Refused, 500, StatusChange::Fails),
            // HTTPS or gRPC, whose result the handler does not see.
            (Reason::Spliced, 200, StatusChange::None),
            (Reason::Refused, 500, StatusChange::Fails),
            (Reason::Dial, 500, StatusChange::StandsAside),
            (Reason::Dial, 500, StatusChange::None),
            (Reason::Healthy, 200, StatusChange::PassesAgain),
        ] {
            let verdict = Verdict {
                reason,
                status,
                detail: String::new(),
                latency: None,
            };
            let outcome = verdict.outcome(false);
            assert_eq!(
                stats.status_change(outcome, &verdict),
                news,
                "{reason:?} {status}"
            );
        }
    }
}
