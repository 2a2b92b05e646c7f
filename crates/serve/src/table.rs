//! What the handler serves: endpoints, their routes, and what was last seen on each.

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
    /// How to dial it.
    pub dialer: Arc<dyn Dial>,
    /// What its checks have cost lately.
    pub cost: Arc<PodCost>,
    /// Most checks that may be in flight at once.
    pub max_in_flight: usize,
    /// Checks in flight.
    pub in_flight: AtomicUsize,
}

impl ServedPod {
    /// A place for one check in flight; none when the pod has as many as it may have.
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

/// Holds a pod's place for one check until dropped.
pub struct InFlight {
    pod: Arc<ServedPod>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let _ = self.pod.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One declared check, and everyone who declared just this one.
pub struct Route {
    /// (container, kind) of each declaration. Two probes with the same port and target can't be told
    /// apart on the wire; they share the route, and with it verdicts and counts.
    pub members: Vec<(String, ProbeKind)>,
    /// What it does.
    pub action: Action,
    /// The User-Agents that the members declare, where the kubelet does not send its own.
    pub agents: Vec<String>,
    /// The longest of the members' timeouts; none for lifecycle hooks.
    pub timeout: Option<Duration>,
    /// The timeouts of other members, which are shorter.
    pub shorter: Vec<Duration>,
    /// The way by which it is served.
    pub mode: ProbeMode,
    /// What happened so far.
    pub stats: RouteStats,
}

impl Route {
    /// Whether only lifecycle hooks declared it.
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

/// What a verdict has to tell that those before it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusChange {
    /// Nothing.
    None,
    /// It fails, or for another reason than before.
    Fails,
    /// It passes, and did not before.
    PassesAgain,
    /// It is left to plain networking, and was not before.
    StandsAside,
}

/// What happened on a route.
#[derive(Default)]
pub struct RouteStats {
    last: Mutex<Option<(Instant, Verdict)>>,
    /// How it failed last, unless it has passed since.
    failing: Mutex<Option<(Reason, u16)>>,
    success: AtomicU64,
    failure: AtomicU64,
    unknown: AtomicU64,
}

impl RouteStats {
    /// What `verdict`, whose outcome this is, has to tell that those before did not.
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
            // The kubelet makes an event of this one too.
            (Outcome::Failure, _) | (_, Reason::BodyIncomplete) => {
                unless_known(StatusChange::Fails)
            }
            (_, Reason::Dial) => unless_known(StatusChange::StandsAside),
            (Outcome::Success, _) => match failing.take() {
                Some(_) => StatusChange::PassesAgain,
                None => StatusChange::None,
            },
            // Whatever it failed with before, the app was there.
            (Outcome::Unknown, Reason::Spliced) => {
                *failing = None;
                StatusChange::None
            }
            (Outcome::Unknown, _) => StatusChange::None,
        }
    }

    /// Notes a verdict.
    pub fn record(&self, outcome: Outcome, verdict: Verdict) {
        let counter = match outcome {
            Outcome::Success => &self.success,
            Outcome::Failure => &self.failure,
            Outcome::Unknown => &self.unknown,
        };
        let _ = counter.fetch_add(1, Ordering::Relaxed);
        *self.last.lock() = Some((Instant::now(), verdict));
    }

    /// The last verdict and when it came.
    pub fn last(&self) -> Option<(Instant, Verdict)> {
        self.last.lock().clone()
    }

    /// How many verdicts of each outcome: success, failure, unknown.
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
    /// Whose it is.
    pub pod: Arc<ServedPod>,
    /// What is served there.
    pub routes: Routes,
}

/// What is served on an endpoint. A clone shares its routes.
#[derive(Clone)]
pub enum Routes {
    /// The app's own port.
    Native(NativeRoutes),
    /// An agent's port: the rewritten path (`/app-health/<container>/livez`) to the original check.
    Rewritten(HashMap<String, Arc<Route>>),
}

impl Routes {
    /// The longest timeout of its probes; zero where there are none.
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

/// What was declared on one of the app's own ports.
#[derive(Default, Clone)]
pub struct NativeRoutes {
    /// `tcpSocket`.
    pub tcp: Option<Arc<Route>>,
    /// `httpGet`, plaintext: request target (path and query) to its route.
    pub http: HashMap<String, HttpRoute>,
    /// `httpGet` with scheme HTTPS, any target: it is spliced.
    pub https: Option<Arc<Route>>,
    /// `grpc`, any service: it is spliced.
    pub grpc: Option<Arc<Route>>,
}

/// A plaintext httpGet target.
#[derive(Default, Clone)]
pub struct HttpRoute {
    /// Declared by probes.
    pub probe: Option<Arc<Route>>,
    /// Declared by lifecycle hooks: their User-Agent is `kube-lifecycle/...`.
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

    /// Puts `endpoint` at its address, in place of what stood there.
    pub fn insert(&self, endpoint: Arc<Endpoint>) {
        let _ = self.endpoints.write().insert(endpoint.address, endpoint);
    }

    /// Takes the endpoint at `address` away.
    pub fn remove(&self, address: SocketAddr) -> Option<Arc<Endpoint>> {
        self.endpoints.write().remove(&address)
    }

    /// All endpoints, in no order.
    pub fn all(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.read().values().cloned().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.endpoints.read().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_goes_on_as_it_did_is_no_news() {
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
            // HTTPS or gRPC, of which we never hear that it passes.
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
