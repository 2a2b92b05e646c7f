//! A source of pods: the Kubernetes API. Watches the pods of this node and the metadata of
//! their namespaces.
//!
//! One task for each watch, and one that owns the [`Index`] and sends its results to the registry. What the
//! API server sent last stays valid until it sends something else, however long it is unreachable.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use tokio::sync::{mpsc, watch as watch_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::source::SourceEvent;
use pods::scope::Selection;
use pods::select::SelectedPod;

pub mod client;
pub mod health;
pub mod index;
pub mod last_known;
pub mod namespaces;
pub mod object;
pub mod table;
mod token;
mod watch;
pub mod watch_error;

use health::Health;
use index::{Index, NamespaceRecord, PodRecord, namespace_item, pod_item};
use last_known::{LastKnown, SentPods};
use namespaces::{NamespaceChange, Progress};
use object::{NamespaceMetadata, Resource};
use support::backoff::Timeouts;
use watch::{Change, Watch};
use watch_error::WatchError;

/// Capacity of the change queues: large enough that a watch never waits for long, small enough to be bounded.
const CHANNEL: usize = 64;
/// Minimum time between two messages to the registry, so that a hundred pods that start at once need only
/// a few messages.
const PACE: Duration = Duration::from_millis(5);
/// How long pods wait for the namespaces once they are listed.
const NAMESPACES_WAIT: Duration = Duration::from_secs(1);
/// The same while last known pods are served, which take the namespaces' annotations into account.
const NAMESPACES_WAIT_KNOWN: Duration = Duration::from_secs(30);

/// What to watch, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node whose pods are watched.
    pub node: String,
    /// Which pods are served or observed; the marks of a pod's namespace are added.
    pub selection: watch_channel::Receiver<Selection>,
    /// Timeouts for the API server.
    pub timeouts: Timeouts,
    /// The file that stores the pods for the next start; `None`: they are not stored.
    pub last_known: Option<LastKnown>,
}

/// Watches until the receiver of `tx` is dropped. Drops `listed` once the existing pods have been sent for the
/// first time. Keeps `health` up to date.
pub async fn run<L: Send>(
    client: Client,
    options: Options,
    health: Arc<Health>,
    listed: L,
    tx: mpsc::Sender<SourceEvent>,
) {
    tracing::info!(node = options.node, "watching the node's pods");
    let (pod_changes, pods) = mpsc::channel(CHANNEL);
    let (namespace_changes, namespaces) = mpsc::channel(CHANNEL);
    let mut watches = JoinSet::new();
    let pod_watch = Watch::<Box<Pod>, PodRecord, Change<PodRecord>> {
        client: client.clone(),
        fields: Some(format!("spec.nodeName={}", options.node)),
        timeouts: options.timeouts.clone(),
        health: Arc::clone(&health),
        keep: Box::new(pod_item),
        message: Box::new(|change| change),
        changes: pod_changes,
    };
    let _ = watches.spawn(pod_watch.run());
    let (namespaces_wanted, wanted) = watch_channel::channel(BTreeSet::new());
    let namespace_watch = namespaces::watch(wanted, namespace_changes.clone(), {
        let (health, timeouts) = (Arc::clone(&health), options.timeouts);
        move |name| {
            let watch = Watch::<NamespaceMetadata, NamespaceRecord, NamespaceChange> {
                client: client.clone(),
                fields: Some(format!("metadata.name={name}")),
                timeouts: timeouts.clone(),
                health: Arc::clone(&health),
                keep: Box::new(namespace_item),
                message: Box::new(move |change| (name.clone(), change)),
                changes: namespace_changes.clone(),
            };
            watch.run()
        }
    });
    let _ = watches.spawn(namespace_watch);
    let mut last_sent = None;
    let mut known_before = 0;
    if let Some(file) = options.last_known {
        let pods = file.read();
        known_before = pods.len();
        if known_before > 0 {
            tracing::info!(
                pods = known_before,
                "serving the last known pods until the API server answers"
            );
            if tx.send(SourceEvent::Replace(pods)).await.is_err() {
                return;
            }
        }
        let (to_keep, kept) = watch_channel::channel(SentPods::default());
        last_sent = Some(to_keep);
        let _ = watches.spawn(file.keep(kept));
    }
    let mut selection = options.selection;
    let selected = *selection.borrow_and_update();
    let feed = Feed {
        index: Index::new(selected),
        selection,
        node: options.node,
        health,
        tx,
        listed: Some(listed),
        last_sent,
        known_before,
        pods: WatchState::default(),
        namespaces: Progress::default(),
        namespaces_wanted,
        sent: Vec::new(),
        problems: Vec::new(),
        pods_changed: false,
        held_back_until: None,
        troubles_changed: false,
    };
    // The watches end when their channels close; if one of them panics, so does this function.
    feed.run(pods, namespaces).await;
    while let Some(ended) = watches.join_next().await {
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Owns the index and sends its results.
struct Feed<L> {
    index: Index,
    /// The daemon's settings, which may change.
    selection: watch_channel::Receiver<Selection>,
    /// The node whose pods these are.
    node: String,
    health: Arc<Health>,
    tx: mpsc::Sender<SourceEvent>,
    /// Dropped once the first pods have been sent.
    listed: Option<L>,
    /// Receives the pods as last sent, if they are stored.
    last_sent: Option<watch_channel::Sender<SentPods>>,
    /// How many pods were sent before the API server answered.
    known_before: usize,
    pods: WatchState,
    namespaces: Progress,
    /// Receives the namespaces that are to be watched.
    namespaces_wanted: watch_channel::Sender<BTreeSet<String>>,
    /// The pods as last sent.
    sent: Vec<Arc<SelectedPod>>,
    /// The problems as last sent.
    problems: Vec<String>,
    /// Whether there are pods to send.
    pods_changed: bool,
    /// Until when pods are not sent because their namespaces are not known.
    held_back_until: Option<Instant>,
    /// Whether there may be problems to send.
    troubles_changed: bool,
}

/// The state of a watch.
#[derive(Default)]
struct WatchState {
    /// When all objects were first listed.
    listed: Option<Instant>,
    trouble: Option<WatchError>,
}

impl<L> Feed<L> {
    async fn run(
        mut self,
        mut pods: mpsc::Receiver<Change<PodRecord>>,
        mut namespaces: mpsc::Receiver<NamespaceChange>,
    ) {
        // The first change after a quiet time is sent at once.
        let mut free = Instant::now();
        loop {
            let due = self.due().map(|due| due.max(free));
            if due.is_some_and(|due| due <= Instant::now()) {
                if self.publish().await.is_err() {
                    return;
                }
                free = Instant::now() + PACE;
                continue;
            }
            tokio::select! {
                () = self.tx.closed() => return,
                Ok(()) = self.selection.changed() => {
                    let selection = *self.selection.borrow_and_update();
                    self.pods_changed |= self.index.set_selection(selection);
                }
                () = sleep_until(due.unwrap_or(free)), if due.is_some() => {}
                change = pods.recv() => match change {
                    Some(change) => self.pod(change),
                    None => return,
                },
                change = namespaces.recv() => match change {
                    Some((name, change)) => self.namespace(&name, change),
                    None => return,
                },
            }
            // Changes that are already queued go into the same message.
            while let Ok(change) = pods.try_recv() {
                self.pod(change);
            }
            // Computes the problems once for all of them.
            self.follow_namespaces();
            while let Ok((name, change)) = namespaces.try_recv() {
                self.namespace(&name, change);
            }
        }
    }

    /// When to send the next message; `None`: there is nothing to send.
    fn due(&self) -> Option<Instant> {
        let troubles = self.troubles_changed.then(Instant::now);
        let pods = self.pods_from().filter(|_| self.pods_changed);
        let held_back = self.held_back_until.filter(|_| self.listed.is_none());
        troubles.into_iter().chain(pods).chain(held_back).min()
    }

    /// The time from which pods may be sent. Which pods are served depends on the namespaces' labels, but pods wait for
    /// them only for a short time, and not at all if the daemon may not read them. Later, only pods of a new namespace
    /// wait.
    fn pods_from(&self) -> Option<Instant> {
        let pods = self.pods.listed?;
        let published = self.listed.is_none();
        Some(if published || self.namespaces.all_known() {
            pods
        } else if self.known_before > 0 {
            pods + NAMESPACES_WAIT_KNOWN
        } else {
            pods + NAMESPACES_WAIT
        })
    }

    fn pod(&mut self, change: Change<PodRecord>) {
        self.pods_changed |= match change {
            Change::Reset(version, items) => {
                tracing::debug!(pods = items.len(), version, "pods listed");
                let first = self.pods.reset();
                self.index.reset(&version, items) || first
            }
            Change::Apply(item) => self.index.apply(item),
            Change::Delete(item) => self.index.delete(&item),
            Change::WatchError(trouble) => {
                self.troubles_changed |= self.pods.set_trouble(trouble);
                false
            }
        };
    }

    /// Watches the namespaces that have pods, and no others.
    fn follow_namespaces(&mut self) {
        let names = self.index.namespaces_of_pods();
        if self.namespaces.set(&names, Instant::now()) {
            self.index.keep_namespaces(&names);
            let _ = self.namespaces_wanted.send_replace(names);
        }
    }

    fn namespace(&mut self, name: &str, change: Change<NamespaceRecord>) {
        if !self.namespaces.has(name) {
            return; // its last pod has ended meanwhile
        }
        self.pods_changed |= match change {
            Change::Reset(version, found) => {
                tracing::debug!(name, exists = !found.is_empty(), version, "namespace read");
                let first = self.namespaces.read(name);
                self.index.reset_namespace(name, &version, found) || first
            }
            Change::Apply(item) => self.index.apply_namespace(item),
            Change::Delete(item) => self.index.delete_namespace(&item),
            Change::WatchError(trouble) => {
                self.troubles_changed |= self.namespaces.set_trouble(name, trouble);
                false
            }
        };
    }

    async fn publish(&mut self) -> Result<(), mpsc::error::SendError<SourceEvent>> {
        self.troubles_changed = false;
        for resource in Resource::ALL {
            self.health
                .of(resource)
                .set_unreadable(self.index.unreadable(resource));
        }
        let problems = self.all_problems();
        if self.problems != problems {
            self.problems = problems.clone();
            self.tx.send(SourceEvent::Problems(problems)).await?;
        }
        let now = Instant::now();
        let is_due = self.pods_changed || self.held_back_until.is_some_and(|until| until <= now);
        if is_due && self.pods_from().is_some_and(|from| from <= now) {
            self.pods_changed = false;
            // The first pods have waited long enough, and are all sent.
            let is_first = self.listed.is_some();
            let wait = if is_first {
                Duration::ZERO
            } else {
                NAMESPACES_WAIT
            };
            let awaited = self.namespaces.awaited(wait, now);
            self.held_back_until = self.namespaces.awaited_until(wait, now);
            let pods = self.index.pods(&awaited);
            if !is_first && is_same(&self.sent, &pods) {
                return Ok(());
            }
            self.sent.clone_from(&pods);
            if let Some(last_sent) = &self.last_sent
                && self.namespaces.all_known()
            {
                let _ = last_sent.send_replace(Arc::new(pods.clone()));
            }
            self.tx.send(SourceEvent::Replace(pods)).await?;
            self.listed = None;
        }
        Ok(())
    }

    /// Whether the last known pods of an earlier daemon are served, according to the namespaces' annotations
    /// of that time.
    fn served_before(&self) -> bool {
        self.known_before > 0 && self.pods.listed.is_none()
    }

    fn all_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(trouble) = &self.pods.trouble {
            let meanwhile = if self.pods.listed.is_some() || self.served_before() {
                "the last known pods are served"
            } else {
                "no pod is served until it answers"
            };
            problems.push(format!("{}; {meanwhile}", trouble.text));
        }
        for (text, were_read) in self.namespaces.troubles() {
            let meanwhile = if were_read || self.served_before() {
                "the last known labels and annotations of namespaces apply"
            } else {
                "labels and annotations of namespaces are ignored"
            };
            problems.push(format!("{text}; {meanwhile}"));
        }
        if self.pods.listed.is_some() && !self.index.has_pods() {
            problems.push(format!(
                "the API server has no pods for node {}: is that this node's name? `kubectl get nodes` lists them",
                self.node
            ));
        }
        problems.append(&mut self.index.problems());
        problems
    }
}

/// Whether these are the same pods, and none was selected again.
fn is_same(one: &[Arc<SelectedPod>], other: &[Arc<SelectedPod>]) -> bool {
    let pairs = one.iter().zip(other);
    one.len() == other.len()
        && pairs
            .into_iter()
            .all(|(one, other)| Arc::ptr_eq(one, other))
}

impl WatchState {
    /// All objects are listed. Returns whether this is the first time.
    fn reset(&mut self) -> bool {
        let first = self.listed.is_none();
        let _ = self.listed.get_or_insert_with(Instant::now);
        first
    }

    /// Returns whether the state has changed.
    fn set_trouble(&mut self, trouble: Option<WatchError>) -> bool {
        let news =
            self.trouble.as_ref().map(|old| &old.text) != trouble.as_ref().map(|new| &new.text);
        self.trouble = trouble;
        news
    }
}

#[cfg(test)]
mod tests;
