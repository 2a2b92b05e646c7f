//! Updates the registry from the source of pods, and from the tasks that follow each pod's namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep_until;

use super::CHANNEL;
use super::canary_trial::{Trial, obstacle};
use super::follower::Follower;
use super::kernel_path::{KernelPathWatch, Path};
use super::observe_task::Observer;
use super::pending_pods::PendingPods;
use super::pod_look::LO_DOWN;

use super::pod_task::{self, Event, Place, PodChange};
use super::pod_work::PodPool;
use super::pods_state::PodsState;
use kernel::canary::Canary;
use kernel::exemption::Matcher;
use kernel::locate::Locator;
use kernel::maps::EndpointMap;
use model::{Pod, PodId};
use pods::select::SelectedPod;
use probe::dial::Dial;
use reconcile::path::KernelUse;
use reconcile::registry::{Obstacle, Placement, PodEntry, Registry};
use serve::cost::{EXCLUDED_FOR, Lane, PodCost};
use serve::metrics::{Metrics, PodState};
use sources::source::SourceEvent;
use support::readiness::BlockReady;

/// Why the handler does not serve a pod whose checks cost too much.
const CHECKS_COST_TOO_MUCH: &str = "its checks cost more than 250 ms of processor time per second";

/// Maximum number of a pod's refused connections that wait for its task.
const REFUSALS: usize = 16;

/// The task.
pub struct RegistryTask {
    shared: Arc<Mutex<PodsState>>,
    metrics: Arc<Metrics>,
    locator: Arc<Locator>,
    pool: Arc<PodPool>,
    /// `None`: the handler serves all pods.
    kernel_path: KernelPathWatch,
    observer: Observer,
    followers: BTreeMap<String, Follower>,
    running: JoinSet<()>,
    generation: u64,
    /// Held until the daemon has examined every pod of the first list.
    pods_ready: Option<BlockReady>,
    first_look: Option<BTreeSet<String>>,
    unserved: PendingPods,
    too_costly: mpsc::UnboundedReceiver<PodId>,
    /// Endpoints to which the kubelet could not connect.
    refusals: mpsc::Receiver<(PodId, SocketAddr)>,
    /// Sent to when the first pods are in place.
    in_place: Option<oneshot::Sender<()>>,
}

/// The parts that wait for the first pods.
pub struct FirstPods {
    /// Held until the daemon has examined each of them: it is not ready before that.
    pub examined: BlockReady,
    /// Sent to when their endpoints are in place.
    pub in_place: oneshot::Sender<()>,
}

impl RegistryTask {
    /// Without pods yet.
    pub fn new(
        shared: Arc<Mutex<PodsState>>,
        metrics: Arc<Metrics>,
        locator: Arc<Locator>,
        kernel_path: KernelPathWatch,
        observer: Observer,
        first_pods: FirstPods,
        (too_costly, refusals): (
            mpsc::UnboundedReceiver<PodId>,
            mpsc::Receiver<(PodId, SocketAddr)>,
        ),
    ) -> Self {
        Self {
            shared,
            metrics,
            locator,
            pool: PodPool::new(std::thread::available_parallelism().map_or(1, NonZero::get)),
            kernel_path,
            observer,
            followers: BTreeMap::new(),
            running: JoinSet::new(),
            generation: 0,
            pods_ready: Some(first_pods.examined),
            first_look: None,
            unserved: PendingPods::default(),
            too_costly,
            refusals,
            in_place: Some(first_pods.in_place),
        }
    }

    /// Runs until the source ends.
    pub async fn run(mut self, mut source: mpsc::Receiver<SourceEvent>) {
        let (events, mut from_pods) = mpsc::channel(CHANNEL);
        loop {
            let due = self.unserved.due();
            tokio::select! {
                event = source.recv() => match event {
                    Some(SourceEvent::Replace(pods)) => self.replace(pods, &events),
                    Some(SourceEvent::Problems(problems)) => self.problems(problems),
                    None => return,
                },
                Some(event) = from_pods.recv() => {
                    // Batched, so that a thousand pods at the daemon's start are a few updates of the kernel's map
                    // instead of a thousand.
                    self.shared.lock().registry.hold();
                    self.changed(event);
                    while let Ok(event) = from_pods.try_recv() {
                        self.changed(event);
                    }
                    self.shared.lock().registry.release();
                }
                Ok(()) = self.kernel_path.changed() => self.kernel_path_changed(),
                Some(pod) = self.too_costly.recv() => self.exclude(&pod),
                Some((pod, at)) = self.refusals.recv() => {
                    if let Some(follower) = self.followers.get(&pod.uid) {
                        // If the channel is full, the next refusal is sent instead.
                        let _ = follower.refused.try_send(at);
                    }
                    continue;
                }
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    self.log_unserved();
                    continue;
                }
                Some(ended) = self.running.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        self.panicked(&error);
                    }
                }
            }
            self.count();
            if self.pods_ready.is_none() {
                if let Some(in_place) = self.in_place.take() {
                    // An error means that nothing waits for it.
                    let _ = in_place.send(());
                }
                // Each time, because the programs may be loaded only later.
                if let Some(kernel_path) = &*self.kernel_path.borrow() {
                    kernel_path.first_pods_are_in_place();
                }
            }
        }
    }

    fn replace(&mut self, parsed: Vec<Arc<SelectedPod>>, events: &mpsc::Sender<Event>) {
        let mut shared = self.shared.lock();
        let observed = parsed.iter().filter_map(|pod| pod.observed.clone());
        self.observer.replace(observed.collect());
        let pods: Vec<Arc<Pod>> = parsed.iter().filter_map(|pod| pod.pod.clone()).collect();
        shared.parsed = parsed;
        let replaced = shared.registry.replace(pods);
        for id in &replaced.stopped {
            let _ = shared.canaries.remove(&id.uid);
            let _ = shared.paths.remove(&id.uid);
        }
        shared.note_states();
        let PodsState {
            registry,
            histories,
            ..
        } = &mut *shared;
        for pod in &replaced.started {
            if let Some(entry) = registry.pods().get(&pod.id.uid) {
                histories.restore(&pod.id.uid, &entry.routes.routes());
            }
        }
        for entry in shared.registry.pods().values() {
            self.unserved.placed(entry, Instant::now());
        }
        // Some of them still exist, and the daemon only searches for their namespaces again.
        let gone: Vec<bool> = replaced
            .stopped
            .iter()
            .map(|id| {
                let now = shared.registry.pods().get(&id.uid);
                now.is_none_or(|entry| entry.pod.id != *id)
            })
            .collect();
        let exists: BTreeSet<String> = shared.parsed.iter().map(|pod| pod.id.uid.clone()).collect();
        drop(shared);

        for (id, gone) in replaced.stopped.into_iter().zip(gone) {
            if let Some(follower) = self.followers.remove(&id.uid) {
                follower.end(gone && exists.contains(&id.uid));
            }
            let _ = self.unserved.done(&id.uid);
            if gone {
                tracing::info!(pod = %id, "pod gone");
                self.metrics.forget(&id);
            }
        }
        let first = self.first_look.is_none();
        if first {
            let _ = self.first_look.insert(
                replaced
                    .started
                    .iter()
                    .map(|pod| pod.id.uid.clone())
                    .collect(),
            );
        }
        for pod in replaced.started {
            tracing::info!(pod = %pod.id, mesh = pod.mesh.name(), "pod added");
            self.metrics.adopt(&pod.id);
            self.generation += 1;
            let uid = pod.id.uid.clone();
            let (refused, refusals) = mpsc::channel(REFUSALS);
            let (withdraw, withdrawn) = oneshot::channel();
            let abort = self.running.spawn(pod_task::run(
                pod,
                self.generation,
                Arc::clone(&self.locator),
                Arc::clone(&self.pool),
                self.kernel_path.clone(),
                (refusals, withdrawn),
                events.clone(),
            ));
            let follower = Follower {
                generation: self.generation,
                abort,
                refused,
                withdraw,
            };
            if let Some(old) = self.followers.insert(uid, follower) {
                old.abort.abort();
            }
        }
        self.examined(None);
    }

    /// Stops serving a pod whose task panicked, because the pod's namespace may change unnoticed.
    fn panicked(&mut self, error: &JoinError) {
        tracing::error!(%error, "following a pod's namespace panicked: the pod is not served");
        let mut followers = self.followers.iter();
        let panicked = followers.find(|(_, follower)| follower.abort.id() == error.id());
        if let Some(uid) = panicked.map(|(uid, _)| uid.clone()) {
            let why =
                "following its namespace failed; restart the daemon, and report this".to_owned();
            self.unserved.lost(&uid, why.clone(), Instant::now());
            let obstacle = Some(Obstacle::NoNamespace(why));
            self.shared.lock().registry.place(&uid, None, obstacle);
            self.examined(Some(&uid));
        }
    }

    fn problems(&mut self, problems: Vec<String>) {
        let mut shared = self.shared.lock();
        for problem in problems
            .iter()
            .filter(|problem| !shared.problems.contains(problem))
        {
            tracing::warn!("{problem}");
        }
        shared.problems = problems;
    }

    fn changed(&mut self, event: Event) {
        let Event {
            uid,
            generation,
            change,
        } = event;
        if self
            .followers
            .get(&uid)
            .is_none_or(|follower| follower.generation != generation)
        {
            return; // from the task of a pod that was removed, or added again since
        }
        let mut shared = self.shared.lock();
        let Some(pod) = shared
            .registry
            .pods()
            .get(&uid)
            .map(|entry| Arc::clone(&entry.pod))
        else {
            return;
        };
        match change {
            PodChange::Placed(place) => {
                let lo_up = place.lo_up;
                let path = place.path.clone();
                let obstacle = self.note_trial(&mut shared, &pod, lo_up, place.trial.clone());
                let mut placement = placement(&shared, &pod, place);
                if let Some(path) = &path {
                    placement.kernel = self.kernel(path);
                }
                shared.registry.place(&uid, Some(placement), obstacle);
                if let Some(path) = path {
                    self.note_path(&mut shared, &pod, path);
                }
                if !lo_up {
                    self.unserved.lost(&uid, LO_DOWN.to_owned(), Instant::now());
                } else if let Some(entry) = shared.registry.pods().get(&uid) {
                    self.unserved.placed(entry, Instant::now());
                }
            }
            PodChange::Canary(trial) => {
                let obstacle = self.note_trial(&mut shared, &pod, true, trial);
                shared.registry.set_obstacle(&uid, obstacle);
            }
            PodChange::Redirects(redirects) => {
                tracing::info!(
                    pod = %pod.id, %redirects,
                    "the pod's own rules redirect ports: their probes are unchanged"
                );
                shared.registry.set_redirects(&uid, redirects);
            }
            PodChange::Path(path) => self.note_path(&mut shared, &pod, path),
            PodChange::Lost(why) => {
                tracing::debug!(pod = %pod.id, why, "not served");
                self.unserved.lost(&uid, why.clone(), Instant::now());
                let _ = shared.canaries.remove(&uid);
                let _ = shared.paths.remove(&uid);
                shared
                    .registry
                    .place(&uid, None, Some(Obstacle::NoNamespace(why)));
            }
        }
        drop(shared);
        self.examined(Some(&uid));
    }

    /// Stops serving a pod in the handler whose checks cost too much, until a canary dial after [`EXCLUDED_FOR`].
    fn exclude(&self, pod: &PodId) {
        let why = CHECKS_COST_TOO_MUCH.to_owned();
        tracing::warn!(%pod, "the handler does not serve it for {EXCLUDED_FOR:?}: {why}");
        let mut shared = self.shared.lock();
        let known = shared.registry.pods().get(&pod.uid);
        if known.is_some_and(|entry| entry.obstacle.is_none()) {
            let obstacle = Some(Obstacle::Costly(why));
            shared.registry.set_obstacle(&pod.uid, obstacle);
        }
    }

    /// Logs which pods are still not served, and why.
    fn log_unserved(&mut self) {
        let shared = self.shared.lock();
        for line in self.unserved.take(Instant::now()) {
            let known = shared.registry.pods();
            let names = line.pods.iter().filter_map(|uid| known.get(uid));
            let names = names.filter(|entry| !entry.is_by_kernel_alone());
            let names: Vec<String> = names.map(|entry| entry.pod.id.to_string()).collect();
            if names.is_empty() {
                continue;
            }
            let (pods, why) = (names.join(", "), line.why);
            match line.more {
                0 => tracing::info!(pods, why, "not served"),
                more => tracing::info!(pods, more, why, "not served"),
            }
        }
    }

    /// Stores a canary's result; returns why the handler must not serve the pod, if it must not.
    fn note_trial(
        &self,
        shared: &mut PodsState,
        pod: &Pod,
        lo_up: bool,
        trial: Trial,
    ) -> Option<Obstacle> {
        tracing::debug!(pod = %pod.id, cost = ?trial.cost, canary = ?trial.canary, "canary");
        let silent = matches!(trial.canary, Canary::MeshSilent { .. });
        let before = shared.canaries.get(&pod.id.uid);
        // The time without the mesh's listener counts from the first such result.
        let since = before.filter(|(canary, _)| silent && *canary == trial.canary);
        let since = since.map_or_else(Instant::now, |(_, since)| *since);
        let result = (trial.canary.clone(), since);
        let _ = shared.canaries.insert(pod.id.uid.clone(), result);
        let entry = shared.registry.pods().get(&pod.id.uid);
        let before = entry.and_then(|entry| entry.obstacle.clone());
        let excluded = entry
            .and_then(|entry| entry.placement.as_ref())
            .is_some_and(|placement| placement.cost.lane(Instant::now()) == Lane::Excluded);
        let after = match obstacle(before.as_ref(), lo_up, trial) {
            None if excluded => Some(Obstacle::Costly(CHECKS_COST_TOO_MUCH.to_owned())),
            after => after,
        };
        match (&before, &after) {
            (Some(Obstacle::Captured(_)), Some(Obstacle::Captured(_)))
            | (Some(Obstacle::Costly(_)), Some(Obstacle::Costly(_))) => {}
            (_, Some(Obstacle::Captured(why))) => {
                let _ = self.metrics.canary_failures.inc();
                tracing::warn!(pod = %pod.id, mesh = pod.mesh.name(), "the handler does not serve it: {why}");
            }
            (_, Some(Obstacle::Costly(why))) => {
                tracing::warn!(pod = %pod.id, mesh = pod.mesh.name(), "the handler does not serve it: {why}");
            }
            (Some(Obstacle::Captured(_)), None) => {
                tracing::info!(pod = %pod.id, "the handler serves it again: the canary dial passes");
            }
            (Some(Obstacle::Costly(_)), None) => {
                tracing::info!(pod = %pod.id, "the handler serves it again: its dials and checks are cheap");
            }
            _ => {}
        }
        after
    }

    fn kernel(&self, path: &Path) -> Option<KernelUse> {
        let kernel_path = self.kernel_path.borrow().clone();
        kernel_path.and_then(|kernel_path| kernel_path.kernel(path))
    }

    /// The path that serves HTTP may have changed.
    fn kernel_path_changed(&self) {
        let mut shared = self.shared.lock();
        let PodsState {
            registry, paths, ..
        } = &mut *shared;
        registry.hold();
        for (uid, path) in &*paths {
            registry.set_kernel(uid, self.kernel(path));
        }
        registry.release();
    }

    /// Sets the path that serves a pod in the registry, and stores it for `status`.
    fn note_path(&self, shared: &mut PodsState, pod: &Pod, path: Path) {
        let kernel = self.kernel(&path);
        shared.registry.set_kernel(&pod.id.uid, kernel);
        match &path {
            Path::Kernel(Matcher::XtBpf) => {
                tracing::info!(pod = %pod.id, "served by the kernel path");
            }
            Path::Kernel(Matcher::Tc) => {
                tracing::info!(pod = %pod.id, "served by the kernel path (tc)");
            }
            Path::Handler(why) => tracing::info!(pod = %pod.id, why, "served by the handler"),
            Path::Fallback(why) => tracing::info!(
                pod = %pod.id, why,
                "served by the handler, and by the kernel path while the handler does not answer"
            ),
        }
        let _ = shared.paths.insert(pod.id.uid.clone(), path);
    }

    /// Makes the daemon ready once it has examined each pod of the first list.
    fn examined(&mut self, uid: Option<&str>) {
        let Some(waiting) = &mut self.first_look else {
            return;
        };
        if let Some(uid) = uid {
            let _ = waiting.remove(uid);
        }
        waiting.retain(|uid| self.followers.contains_key(uid));
        if waiting.is_empty() {
            self.pods_ready = None;
        }
    }

    fn count(&self) {
        let shared = self.shared.lock();
        let registry = &shared.registry;
        let _ = self.metrics.endpoints.set(registry.installed() as i64);
        let _ = self.metrics.endpoints_failed.set(registry.failed() as i64);
        self.metrics.set_pods(
            registry
                .pods()
                .values()
                .map(|entry| (entry.pod.mesh, state(registry, entry))),
        );
    }
}

/// The state under which a pod is counted.
fn state(registry: &Registry<EndpointMap>, entry: &PodEntry) -> PodState {
    match (&entry.obstacle, &entry.placement) {
        (Some(Obstacle::Captured(_)), _) => PodState::Captured,
        (Some(Obstacle::Costly(_)), _) => PodState::Costly,
        (Some(Obstacle::LoDown(_)), _) => PodState::LoDown,
        (None, Some(_)) if !registry.conflicts(entry).is_empty() => PodState::Conflict,
        (None, Some(_)) if !entry.addresses().is_empty() => PodState::Serving,
        _ => PodState::Pending,
    }
}

/// The placement for the registry. A pod that stays in its namespace keeps its dialer, so the handler's endpoints stay the
/// same.
fn placement(shared: &PodsState, pod: &Pod, place: Place) -> Placement {
    let before = shared
        .registry
        .pods()
        .get(&pod.id.uid)
        .and_then(|entry| entry.placement.as_ref())
        .filter(|placement| placement.netns == place.netns.id());
    let (dialer, cost, kernel) = match before {
        Some(placement) => (
            Arc::clone(&placement.dialer),
            Arc::clone(&placement.cost),
            // Our rules in the namespace do not depend on its addresses.
            placement.kernel,
        ),
        None => (
            place.dialer as Arc<dyn Dial>,
            Arc::new(PodCost::new(Instant::now())),
            None,
        ),
    };
    Placement {
        netns: place.netns.id(),
        sandbox: place.sandbox,
        netns_id: place.nsid,
        addresses: place.addresses,
        dialer,
        cost,
        kernel,
        redirects: place.redirects,
    }
}
