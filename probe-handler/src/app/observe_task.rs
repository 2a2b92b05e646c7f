//! Mode observe: repeats the probes of observed pods, once through the mesh and once bypassing it, and
//! compares the results.
//!
//! Runs on a separate thread with a low priority, because an observed pod's netfilter rules may cost much processor time,
//! and must not delay what the daemon serves.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::CHANNEL;
use super::canary_trial::Trial;
use super::kernel_path::KernelPathWatch;
use super::pod_task::{self, Event, PodChange};
use super::pod_work::PodPool;
use compare::metrics::Metrics;
use compare::node::NodeDialer;
use compare::pods::{ObservedPods, ends_with_success};
use compare::{Change, Compared, Observed, failing_reason};
use kernel::canary::Canary;
use kernel::dial::PodDialer;
use kernel::locate::Locator;
use kernel::scheduling;
use model::{Pod, PodId};
use probe::verdict::Outcome;
use reconcile::redirects::Redirects;

/// Maximum number of reads of pods' namespaces, and of dials, that run at a time.
const WORKERS: usize = 1;
/// The first comparison of a probe begins after this part of its period.
const FIRST: u32 = 4;

/// Observes pods; the thread starts with the first one.
pub struct Observer {
    locator: Arc<Locator>,
    metrics: Metrics,
    pods: Arc<ObservedPods>,
    /// The pods to observe.
    wanted: Option<watch::Sender<Vec<Arc<Pod>>>>,
}

impl Observer {
    /// Keeps `pods` up to date.
    pub fn new(locator: Arc<Locator>, metrics: Metrics, pods: Arc<ObservedPods>) -> Self {
        Self {
            locator,
            metrics,
            pods,
            wanted: None,
        }
    }

    /// Observes `wanted` from now on, and no other pods.
    pub fn replace(&mut self, wanted: Vec<Arc<Pod>>) {
        if let Some(sender) = &self.wanted {
            let _ = sender.send_replace(wanted);
        } else if !wanted.is_empty() {
            match self.start(wanted) {
                Ok(sender) => self.wanted = Some(sender),
                Err(error) => tracing::error!("no pod is observed: {error:#}"),
            }
        }
    }

    fn start(&self, first: Vec<Arc<Pod>>) -> anyhow::Result<watch::Sender<Vec<Arc<Pod>>>> {
        let (sender, wanted) = watch::channel(first);
        let observing = Observing {
            locator: Arc::clone(&self.locator),
            pool: PodPool::new(WORKERS),
            metrics: self.metrics.clone(),
            pods: Arc::clone(&self.pods),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let _detached = std::thread::Builder::new()
            .name("observe".to_owned())
            .spawn(move || {
                if let Err(error) = scheduling::give_way() {
                    tracing::debug!(%error, "cannot lower the priority of the observer");
                }
                runtime.block_on(observing.follow(wanted));
            })
            .context("cannot start a thread")?;
        Ok(sender)
    }
}

/// The state that the tasks of all pods share.
struct Observing {
    locator: Arc<Locator>,
    pool: Arc<PodPool>,
    metrics: Metrics,
    pods: Arc<ObservedPods>,
}

impl Observing {
    /// Observes the pods `wanted`, until their sender is dropped.
    async fn follow(self, mut wanted: watch::Receiver<Vec<Arc<Pod>>>) {
        let shared = Arc::new(self);
        let mut running = BTreeMap::<String, (Arc<Pod>, JoinSet<()>)>::new();
        loop {
            let pods = wanted.borrow_and_update().clone();
            running.retain(|uid, (known, _)| {
                let stays = pods.iter().any(|pod| pod == known);
                if !stays {
                    shared.pods.remove(uid);
                }
                stays
            });
            for pod in pods {
                if !running.contains_key(&pod.id.uid) {
                    let mut task = JoinSet::new();
                    let _ = task.spawn(Arc::clone(&shared).observe(Arc::clone(&pod)));
                    let _ = running.insert(pod.id.uid.clone(), (pod, task));
                }
            }
            if wanted.changed().await.is_err() {
                return;
            }
        }
    }

    /// Observes `pod`.
    async fn observe(self: Arc<Self>, pod: Arc<Pod>) {
        let probes = self.pods.add(&pod);
        tracing::info!(pod = %pod.id, mesh = pod.mesh.name(), probes = probes.len(), "observing");
        let (events, mut changes) = mpsc::channel(CHANNEL);
        // Programs refuse no connection to an observed pod.
        let (_refused, refusals) = mpsc::channel(1);
        let mut following = JoinSet::new();
        // The daemon has no rules in the pod to remove.
        let (_, withdrawn) = oneshot::channel();
        let _ = following.spawn(pod_task::run(
            Arc::clone(&pod),
            0,
            Arc::clone(&self.locator),
            Arc::clone(&self.pool),
            without_kernel_path(),
            (refusals, withdrawn),
            events,
        ));
        let mut known = Known::default();
        let mut repeating = JoinSet::new();
        while let Some(Event { change, .. }) = changes.recv().await {
            if !known.change(&pod, change) {
                continue;
            }
            repeating.abort_all();
            repeating = JoinSet::new();
            let trouble = match &known.place {
                Some((address, dialer)) if known.trouble.is_none() => {
                    for probe in &probes {
                        let at = SocketAddr::new(*address, probe.declared.action.port());
                        // Ports that the pod's own rules redirect are unchanged in every mode.
                        if known.redirects.leads(at).is_some() {
                            continue;
                        }
                        let _ = repeating.spawn(repeat(
                            pod.id.clone(),
                            Arc::clone(probe),
                            *address,
                            Arc::clone(dialer),
                            self.metrics.clone(),
                        ));
                    }
                    None
                }
                Some(_) => known.trouble.clone(),
                None => Some(
                    known
                        .trouble
                        .clone()
                        .unwrap_or_else(|| "it has no address yet".to_owned()),
                ),
            };
            let _ = self.pods.set_trouble(&pod.id.uid, trouble);
        }
    }
}

/// What is known about an observed pod.
#[derive(Default)]
struct Known {
    /// Its address and its dialer, while its namespace is known.
    place: Option<(IpAddr, Arc<PodDialer>)>,
    /// Why its probes can't be compared.
    trouble: Option<String>,
    /// The ports that its own rules redirect.
    redirects: Redirects,
}

impl Known {
    /// Applies `change`; returns whether it matters.
    fn change(&mut self, pod: &Pod, change: PodChange) -> bool {
        match change {
            PodChange::Placed(place) => {
                let address = pod.ips.first().or(place.addresses.first()).copied();
                self.place = address.map(|address| (address, place.dialer));
                self.trouble = cannot_compare(&place.trial);
                self.redirects = place.redirects;
            }
            PodChange::Canary(trial) => self.trouble = cannot_compare(&trial),
            PodChange::Redirects(redirects) => self.redirects = redirects,
            PodChange::Lost(why) => {
                self.place = None;
                self.trouble = Some(why);
            }
            PodChange::Path(_) => return false,
        }
        true
    }
}

/// A disabled kernel path, because observing installs no rules in pods.
fn without_kernel_path() -> KernelPathWatch {
    watch::channel(None).1
}

/// Why a pod's probes can't be compared.
fn cannot_compare(trial: &Trial) -> Option<String> {
    match (&trial.canary, trial.too_much) {
        (Canary::Captured { port }, _) => Some(format!(
            "its mesh captured the daemon's own connection, at port {port}"
        )),
        (_, Some(cost)) => Some(format!(
            "its own netfilter rules cost {} ms of processor time per connection",
            cost.as_millis()
        )),
        _ => None,
    }
}

/// Compares `probe` once per period.
async fn repeat(
    pod: PodId,
    probe: Arc<Observed>,
    address: IpAddr,
    dialer: Arc<PodDialer>,
    metrics: Metrics,
) {
    let period = probe.now.schedule.period.max(Duration::from_secs(1));
    let mut turns = interval_at(Instant::now() + period / FIRST, period);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Change::None;
    loop {
        let _ = turns.tick().await;
        let compared = probe.compare(&NodeDialer, &*dialer, address).await;
        metrics.count(&compared);
        if compared.change != before && compared.change != Change::Unclear {
            log(&pod, &probe, &compared);
            before = compared.change;
        }
        let passes = compared.now.outcome(false) == Outcome::Success;
        if passes && ends_with_success(probe.now.kind) {
            return;
        }
    }
}

fn log(pod: &PodId, probe: &Observed, compared: &Compared) {
    let declared = &probe.declared;
    let (kind, action) = (declared.kind.name(), &declared.action);
    let (protocol, port) = (action.protocol(), action.port());
    match compared
        .change
        .consequence(declared.kind, declared.schedule)
    {
        Some(consequence) => tracing::info!(
            %pod,
            container = declared.container,
            probe = kind,
            protocol,
            port,
            change = %compared.change,
            reason = failing_reason(compared).name(),
            %consequence,
            "serving this probe would change its result"
        ),
        None => tracing::info!(
            %pod,
            container = declared.container,
            probe = kind,
            protocol,
            port,
            "serving this probe would no longer change its result"
        ),
    }
}
