//! Follows one pod's network namespace: finds it, reads its addresses and whether its `lo` is up, verifies the dial by a
//! canary, and detects when any of that changes. Work inside the namespace runs through [`super::pod_work`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::canary_trial::{Trial, both, until_next};
use super::costs::Costs;
use super::kernel_path::{self, Keeping, KernelPath, KernelPathWatch};
use super::own_redirects::{OwnRedirects, Site};
use super::pace::Pace;
use super::pod_look::{ByFamily, Seen, look, subscribe};
use super::pod_work::{Permit, PodPool, PodWork, Turn};
use kernel::address_watch::AddressWatch;
use kernel::canary::{self, Canary, Outcome, Plan, StartedDial};
use kernel::dial::PodDialer;
use kernel::locate::{Locator, Placement};
use kernel::netns::Netns;
use model::Pod;
use model::netns::NetnsId;
use reconcile::redirects::Redirects;

/// Interval between checks for a namespace that does not exist yet.
const SEARCH_PERIOD: Duration = Duration::from_millis(50);
/// Interval between checks whether the namespace at the path is still the same.
const IDENTITY_PERIOD: Duration = Duration::from_millis(250);

/// Time until addresses are read again if it is not known whether some are the node's.
const UNSURE_PERIOD: Duration = Duration::from_secs(1);
/// For how long a pod stays served although it can't be looked at.
const PASSED_OVER: Duration = Duration::from_secs(30);

/// How long a pod waits for a thread that dials before it is served without a canary. The dials of other pods, whose
/// rules may cost seconds, can't delay it for longer.
pub(super) const QUEUED: Duration = Duration::from_millis(100);

/// Why the kernel path does not serve a pod.
const LOCALHOST_ONLY: &str =
    "its mesh connects to the app at localhost, which the kernel path can't reach";

/// A change that a pod's task reports.
#[derive(Debug)]
pub struct Event {
    /// UID of the pod.
    pub uid: String,
    /// Distinguishes the tasks of a pod that was removed and added again.
    pub generation: u64,
    /// The change.
    pub change: PodChange,
}

/// A change of a pod.
#[derive(Debug)]
pub enum PodChange {
    /// It can be served.
    Placed(Place),
    /// The pod can't be served, for this reason.
    Lost(String),
    /// The canary dial was repeated.
    Canary(Trial),
    /// The path that serves the pod is now known, or has changed.
    Path(kernel_path::Path),
    /// The set of ports that its own rules redirect has changed.
    Redirects(Redirects),
}

/// Where a pod is.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its network namespace.
    pub netns: Arc<Netns>,
    /// Dials inside it.
    pub dialer: Arc<PodDialer>,
    /// See [`reconcile::registry::Placement`].
    pub sandbox: u64,
    /// The namespace's id as seen from the kubelet's.
    pub nsid: i32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether its loopback interface, which all dials inside it use, is up.
    pub lo_up: bool,
    /// The result of the canary dial.
    pub trial: Trial,
    /// Which path serves it, if that is known already.
    pub path: Option<kernel_path::Path>,
    /// The ports that its own rules redirect.
    pub redirects: Redirects,
}

/// Follows `pod` and sends `events`, until the task is aborted, the receiver is dropped, or the pod is `withdrawn`: then our
/// rules in it are removed.
pub async fn run(
    pod: Arc<Pod>,
    generation: u64,
    locator: Arc<Locator>,
    pool: Arc<PodPool>,
    kernel_path: KernelPathWatch,
    (refusals, withdrawn): (mpsc::Receiver<SocketAddr>, oneshot::Receiver<()>),
    events: mpsc::Sender<Event>,
) {
    let follower = Follower {
        pod,
        generation,
        work: PodWork::new(pool),
        kernel_path,
        inside: Mutex::default(),
        refusals: Mutex::new(refusals),
        events,
    };
    let follow = async {
        match &follower.pod.netns {
            Some(path) => follower.follow_path(path).await,
            None => follower.follow_cgroup(&locator).await,
        }
    };
    tokio::select! {
        // Returns only when the registry has ended.
        _ = follow => {}
        // An error means that the registry has ended, or aborts this task.
        Ok(()) = withdrawn => follower.remove_rules().await,
    }
}

struct Follower {
    pod: Arc<Pod>,
    generation: u64,
    work: PodWork,
    kernel_path: KernelPathWatch,
    /// The namespace in which the pod is served.
    inside: Mutex<Option<Arc<Netns>>>,
    /// Ports to which the kubelet could not connect.
    refusals: Mutex<mpsc::Receiver<SocketAddr>>,
    events: mpsc::Sender<Event>,
}

/// The registry has ended.
struct Closed;

impl Follower {
    /// Follows the namespace at `path`.
    async fn follow_path(&self, path: &Path) -> Result<(), Closed> {
        let mut last_trouble = String::new();
        let mut sandbox = 0;
        loop {
            match Netns::open(path).and_then(not_the_nodes) {
                Ok(netns) => {
                    last_trouble.clear();
                    let id = netns.id();
                    let why = tokio::select! {
                        closed = self.serve(Arc::new(netns), sandbox) => return closed,
                        why = replaced(path, id) => why,
                    };
                    *self.inside.lock().await = None;
                    sandbox += 1;
                    self.tell(PodChange::Lost(why)).await?;
                }
                Err(error) => {
                    if error.kind() == io::ErrorKind::NotFound {
                        sandbox += 1;
                    }
                    let trouble = format!("{}: {error}", path.display());
                    if trouble != last_trouble {
                        self.tell(PodChange::Lost(trouble.clone())).await?;
                        last_trouble = trouble;
                    }
                    sleep_until(Instant::now() + SEARCH_PERIOD).await;
                }
            }
        }
    }

    /// Follows the processes in the pod's cgroup.
    async fn follow_cgroup(&self, locator: &Locator) -> Result<(), Closed> {
        let mut following = locator.follow(&self.pod.id.uid);
        let mut placement = following.next().await;
        let mut sandbox = 0;
        loop {
            placement = match placement {
                Placement::In(netns) => {
                    sandbox += 1;
                    tokio::select! {
                        closed = self.serve(netns, sandbox) => return closed,
                        next = following.next() => next,
                    }
                }
                Placement::Nowhere(why) => {
                    *self.inside.lock().await = None;
                    self.tell(PodChange::Lost(why.to_string())).await?;
                    following.next().await
                }
            };
        }
    }

    /// Serves the pod from `netns`, retrying after errors, until the registry has ended.
    async fn serve(&self, netns: Arc<Netns>, sandbox: u64) -> Result<(), Closed> {
        *self.inside.lock().await = Some(Arc::clone(&netns));
        let mut last_trouble = String::new();
        let mut costs = Costs::default();
        let mut own = OwnRedirects::default();
        loop {
            let pod = Arc::clone(&self.pod);
            let inside = Arc::clone(&netns);
            let turn = self.work.turn().await;
            let permit = self.work.pool().look().await;
            let (first, turn) = turn
                .work(permit, move || {
                    let dialer = PodDialer::of(Arc::clone(&inside), &pod)?;
                    let (nsid, watch) = subscribe(&inside)?;
                    Ok::<_, io::Error>((dialer, nsid, watch, look(&inside, &pod)))
                })
                .await;
            let trouble = match first {
                Ok((dialer, nsid, watch, seen)) => {
                    last_trouble.clear();
                    let stay = Stay {
                        follower: self,
                        dialer: Arc::new(dialer),
                        netns: &netns,
                        sandbox,
                        nsid,
                    };
                    stay.serve(&watch, (&mut costs, &mut own), seen, turn)
                        .await?
                }
                Err(error) => {
                    drop(turn);
                    format!("cannot use its network namespace: {error}")
                }
            };
            if trouble != last_trouble {
                self.tell(PodChange::Lost(trouble.clone())).await?;
                last_trouble = trouble;
            }
            sleep_until(Instant::now() + SEARCH_PERIOD).await;
        }
    }

    /// Removes our rules from the pod, which is no longer served but may still run.
    async fn remove_rules(&self) {
        let inside = self.inside.lock().await.take();
        let kernel_path = self.kernel_path.borrow().clone();
        if let (Some(netns), Some(kernel_path)) = (inside, kernel_path) {
            kernel_path.remove(&self.pod.id, &self.work, netns).await;
        }
    }

    async fn tell(&self, change: PodChange) -> Result<(), Closed> {
        let event = Event {
            uid: self.pod.id.uid.clone(),
            generation: self.generation,
            change,
        };
        self.events.send(event).await.map_err(|_| Closed)
    }
}

/// A pod in one namespace, whose address changes are subscribed to.
struct Stay<'a> {
    follower: &'a Follower,
    netns: &'a Arc<Netns>,
    dialer: Arc<PodDialer>,
    sandbox: u64,
    nsid: i32,
}

impl Stay<'_> {
    /// Serves the pod, starting with what was `seen` in `turn`; returns why it can no longer be served.
    async fn serve(
        &self,
        watch: &AddressWatch,
        (costs, own): (&mut Costs, &mut OwnRedirects),
        mut seen: io::Result<Seen>,
        mut turn: Turn,
    ) -> Result<String, Closed> {
        let mut pace = Pace::new();
        let mut attempt = 0;
        loop {
            let Seen {
                addresses,
                all,
                lo_up,
                plans,
                unheard,
            } = match seen {
                Ok(seen) => seen,
                Err(error) => return Ok(format!("cannot read its addresses: {error}")),
            };
            let queued = plans.iter().any(|plan| matches!(plan, Plan::Dial(_)));
            let permit = match queued {
                true => timeout(QUEUED, self.follower.work.pool().dial()).await.ok(),
                false => None,
            };
            let left_waiting = queued && permit.is_none();
            let mut last = match left_waiting {
                true => {
                    // The next read of the pod's state needs the turn.
                    drop(turn);
                    Trial {
                        too_much: costs.too_much(),
                        ..Trial::unproven("no dial yet: dials inside other pods take long")
                    }
                }
                false => {
                    let (trial, turn) = self.dial(plans, permit, turn, costs).await;
                    let due = own.due(unheard, Instant::now());
                    let _changed = own.try_ports(self.site(), due, Some(turn)).await;
                    trial
                }
            };
            let kernel_path = self.kernel_path().await;
            let localhost = self.follower.pod.localhost;
            let by_family = ByFamily::new(&addresses, &self.follower.pod.ips);
            let mut kept = kernel_path
                .as_deref()
                .filter(|_| !localhost)
                .map(|kernel_path| kernel_path.keep(&self.follower.work, self.netns, &by_family));
            let comes_first =
                |kept: &&mut Keeping<'_>| kept.comes_first() && self.has_native_probes();
            let path = match kept.as_mut().filter(comes_first) {
                Some(kept) => Some(kept.next().await),
                None if localhost && kernel_path.is_some() => {
                    Some(kernel_path::Path::Handler(LOCALHOST_ONLY.to_owned()))
                }
                None => None,
            };
            let place = Place {
                netns: Arc::clone(self.netns),
                dialer: Arc::clone(&self.dialer),
                sandbox: self.sandbox,
                nsid: self.nsid,
                addresses: addresses.clone(),
                lo_up,
                trial: last.clone(),
                path,
                redirects: own.found().clone(),
            };
            self.follower.tell(PodChange::Placed(place)).await?;

            let mut next_canary = Instant::now();
            if !left_waiting {
                next_canary += until_next(&last, attempt);
            }
            let unsure = sleep_until(Instant::now() + UNSURE_PERIOD);
            tokio::pin!(unsure);
            {
                // Drops these futures before the next read of the pod's state, because they may hold the turn
                // for which that waits.
                let path = self.keep_kernel_path(kept);
                tokio::pin!(path);
                let redirects = self.keep_redirects(own, &addresses);
                tokio::pin!(redirects);
                loop {
                    tokio::select! {
                        closed = &mut path => return Err(closed),
                        closed = &mut redirects => return Err(closed),
                        changed = watch.changed() => {
                            if let Err(error) = changed {
                                return Ok(format!("cannot watch its addresses: {error}"));
                            }
                            break;
                        }
                        () = &mut unsure, if !all => break,
                        again = self.try_again(next_canary, costs), if lo_up => {
                            attempt += 1;
                            if !again.is_as(&last) {
                                self.follower.tell(PodChange::Canary(again.clone())).await?;
                            }
                            next_canary = Instant::now() + until_next(&again, attempt);
                            last = again;
                        }
                    }
                }
            }
            pace.wait().await;
            (seen, turn) = self.look_again().await;
        }
    }

    /// A look at a pod that is served. Errors are passed over for a while, and the pod stays served as it was seen last: they
    /// come from this process, which may have no free descriptors, or may have been stopped, and not from the namespace, which
    /// it holds open.
    async fn look_again(&self) -> (io::Result<Seen>, Turn) {
        let until = Instant::now() + PASSED_OVER;
        loop {
            match self.look().await {
                (Err(error), turn) if Instant::now() < until => {
                    drop(turn);
                    tracing::debug!(pod = %self.follower.pod.id, %error, "cannot look at the pod; it stays served");
                    sleep_until(Instant::now() + SEARCH_PERIOD).await;
                }
                result => return result,
            }
        }
    }

    async fn look(&self) -> (io::Result<Seen>, Turn) {
        let (inside, pod) = (Arc::clone(self.netns), Arc::clone(&self.follower.pod));
        let turn = self.follower.work.turn().await;
        let permit = self.follower.work.pool().look().await;
        turn.work(permit, move || look(&inside, &pod)).await
    }

    /// Repeats the canary dial, not before `when`.
    async fn try_again(&self, when: Instant, costs: &mut Costs) -> Trial {
        sleep_until(when).await;
        match self.look().await {
            (Ok(seen), turn) => self.dial(seen.plans, None, turn, costs).await.0,
            (Err(error), _) => Trial {
                too_much: costs.too_much(),
                ..Trial::unproven(&format!("cannot look into its network namespace: {error}"))
            },
        }
    }

    /// One canary dial for each address family of the pod, because rules differ by family. A capture in one family counts
    /// for the pod.
    async fn dial(
        &self,
        plans: Vec<Plan>,
        mut permit: Option<Permit>,
        mut turn: Turn,
        costs: &mut Costs,
    ) -> (Trial, Turn) {
        let mut result = Canary::Unproven("it has no address yet".to_owned());
        let mut dearest = None;
        for plan in plans {
            let (mut one, ports) = match plan {
                Plan::None(result) => (result, Vec::new()),
                Plan::Dial(ports) => (Canary::Unproven(String::new()), ports),
            };
            for to in ports {
                let cost;
                (one, cost, turn) = self.dial_one(to, permit.take(), turn).await;
                dearest = dearest.max(Some(cost));
                if !matches!(one, Canary::Captured { .. }) {
                    break;
                }
            }
            result = both(result, one);
            // Either result is enough not to serve the pod. More costly dials would only delay the pod's next
            // turn.
            let is_costly = dearest.is_some_and(|cost| cost > canary::BEARABLE);
            if is_costly || matches!(result, Canary::Captured { .. }) {
                break;
            }
        }
        if let Some(cost) = dearest {
            costs.note(cost);
        }
        let trial = Trial {
            canary: result,
            cost: dearest,
            too_much: costs.too_much(),
        };
        (trial, turn)
    }

    /// Whether a probe of the pod is on a port of the app: only the handler serves those on the rewrite port.
    fn has_native_probes(&self) -> bool {
        let pod = &self.follower.pod;
        let rewrite_port = pod.rewritten.as_ref().map(|rewritten| rewritten.port);
        let mut ports = pod.probes.iter().map(|probe| probe.action.port());
        ports.any(|port| Some(port) != rewrite_port)
    }

    fn site(&self) -> Site<'_> {
        Site {
            work: &self.follower.work,
            netns: self.netns,
            pod: &self.follower.pod,
        }
    }

    /// Follows the redirects of the pod's own rules until the registry has ended.
    async fn keep_redirects(&self, own: &mut OwnRedirects, addresses: &[IpAddr]) -> Closed {
        let mut refusals = self.follower.refusals.lock().await;
        loop {
            own.next(self.site(), &mut refusals, addresses).await;
            let change = PodChange::Redirects(own.found().clone());
            if let Err(closed) = self.follower.tell(change).await {
                return closed;
            }
        }
    }

    /// The kernel path, if it is enabled. Waits while the programs are still loading.
    async fn kernel_path(&self) -> Option<Arc<KernelPath>> {
        let mut ready = self.follower.kernel_path.clone();
        // An error means that the kernel path is disabled.
        let found = ready.wait_for(Option::is_some).await.ok()?;
        found.clone()
    }

    /// Maintains the pod's kernel path, if it is enabled, until the registry has ended.
    async fn keep_kernel_path(&self, kept: Option<Keeping<'_>>) -> Closed {
        let Some(mut kept) = kept else {
            return std::future::pending().await;
        };
        loop {
            let path = kept.next().await;
            if let Err(closed) = self.follower.tell(PodChange::Path(path)).await {
                return closed;
            }
        }
    }

    async fn dial_one(
        &self,
        to: SocketAddr,
        permit: Option<Permit>,
        turn: Turn,
    ) -> (Canary, Duration, Turn) {
        let pool = self.follower.work.pool();
        let permit = match permit {
            Some(permit) => permit,
            None => pool.dial().await,
        };
        let dialer = Arc::clone(&self.dialer);
        let (StartedDial { outcome, cost }, turn) =
            turn.work(permit, move || canary::begin(&*dialer, to)).await;
        let socket = match outcome {
            Outcome::Is(canary) => return (canary, cost, turn),
            Outcome::Accepted(socket) => socket,
            // Waits without a thread, because the answer may never arrive.
            Outcome::Waits(socket) => match canary::answer(socket, to).await {
                Ok(socket) => socket,
                Err(canary) => return (canary, cost, turn),
            },
        };
        // Closing it sends packets through the pod's rules, which may cost processor time.
        let permit = pool.dial().await;
        let (canary, turn) = turn
            .work(permit, move || canary::accepted(&socket, to))
            .await;
        (canary, cost, turn)
    }
}

/// Rejects the node's own namespace.
fn not_the_nodes(netns: Netns) -> io::Result<Netns> {
    if netns.id() == Netns::current()?.id() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "this is the node's own network namespace: pods of the host network are not served",
        ));
    }
    Ok(netns)
}

/// Waits until the namespace at `path` is no longer `id`; returns what happened to it.
async fn replaced(path: &Path, id: NetnsId) -> String {
    loop {
        sleep_until(Instant::now() + IDENTITY_PERIOD).await;
        match NetnsId::at(path) {
            Ok(at) if at == id => {}
            Ok(_) => return "its network namespace was replaced".to_owned(),
            Err(error) => return format!("its network namespace is gone: {error}"),
        }
    }
}
