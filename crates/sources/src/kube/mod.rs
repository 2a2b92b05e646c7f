//! A source of pods: the Kubernetes API. Watches the pods of this node and the metadata of
//! namespaces.
//!
//! Three tasks: one for each watch, and one that owns the [`Index`] and sends its results to the registry. What the
//! API server sent last stays valid until it sends something else, however long it is unreachable.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use tokio::sync::{mpsc, watch as watch_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::source::SourceEvent;
use pods::scope::Scope;

pub mod client;
pub mod health;
pub mod index;
pub mod last_known;
pub mod object;
pub mod table;
mod token;
mod watch;
pub mod watch_error;

use health::Health;
use index::{Index, Mark, PodRecord, namespace_item, pod_item};
use last_known::{LastKnown, Told};
use object::{NamespaceAnnotations, Resource};
use support::backoff::Timeouts;
use watch::{Change, Watch};
use watch_error::{Reason, WatchError};

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
    /// Which pods are served.
    pub scope: Scope,
    /// Timeouts for the API server.
    pub timeouts: Timeouts,
    /// Where the pods are stored for the next start; none: they are not stored.
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
    let scope = options.scope;
    let mut watches = JoinSet::new();
    let pod_watch = Watch::<Box<Pod>, PodRecord> {
        client: client.clone(),
        fields: Some(format!("spec.nodeName={}", options.node)),
        timeouts: options.timeouts.clone(),
        health: Arc::clone(&health),
        keep: Box::new(move |pod| pod_item(pod, scope)),
        changes: pod_changes,
    };
    let namespace_watch = Watch::<NamespaceAnnotations, Mark> {
        client,
        fields: None,
        timeouts: options.timeouts,
        health: Arc::clone(&health),
        keep: Box::new(namespace_item),
        changes: namespace_changes,
    };
    let _ = watches.spawn(pod_watch.run());
    let _ = watches.spawn(namespace_watch.run());
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
        let (to_keep, kept) = watch_channel::channel(Told::default());
        last_sent = Some(to_keep);
        let _ = watches.spawn(file.keep(kept));
    }
    let feed = Feed {
        index: Index::default(),
        node: options.node,
        health,
        tx,
        listed: Some(listed),
        last_sent,
        known_before,
        pods: WatchState::default(),
        namespaces: WatchState::default(),
        problems: Vec::new(),
        pods_changed: false,
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
    /// The node whose pods these are.
    node: String,
    health: Arc<Health>,
    tx: mpsc::Sender<SourceEvent>,
    /// Dropped once the first pods have been sent.
    listed: Option<L>,
    /// Receives the pods as last sent, if they are stored.
    last_sent: Option<watch_channel::Sender<Told>>,
    /// How many pods were sent before the API server answered.
    known_before: usize,
    pods: WatchState,
    namespaces: WatchState,
    /// The problems as last sent.
    problems: Vec<String>,
    /// Whether there are pods to send.
    pods_changed: bool,
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
        mut namespaces: mpsc::Receiver<Change<Mark>>,
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
                () = sleep_until(due.unwrap_or(free)), if due.is_some() => {}
                change = pods.recv() => match change {
                    Some(change) => self.pod(change),
                    None => return,
                },
                change = namespaces.recv() => match change {
                    Some(change) => self.namespace(change),
                    None => return,
                },
            }
            // Changes that are already queued go into the same message.
            while let Ok(change) = pods.try_recv() {
                self.pod(change);
            }
            while let Ok(change) = namespaces.try_recv() {
                self.namespace(change);
            }
        }
    }

    /// When to send the next message; none: there is nothing to send.
    fn due(&self) -> Option<Instant> {
        let troubles = self.troubles_changed.then(Instant::now);
        let pods = self.pods_from().filter(|_| self.pods_changed);
        troubles.into_iter().chain(pods).min()
    }

    /// From when on pods may be sent. Which pods are served depends on the namespaces' annotations, but pods wait
    /// for them only for a short time, and not at all if the daemon may not read them.
    fn pods_from(&self) -> Option<Instant> {
        let pods = self.pods.listed?;
        let published = self.listed.is_none();
        Some(if published || self.namespaces_are_known() {
            pods
        } else if self.known_before > 0 {
            pods + NAMESPACES_WAIT_KNOWN
        } else {
            pods + NAMESPACES_WAIT
        })
    }

    /// Whether the namespaces' annotations are known, or never will be.
    fn namespaces_are_known(&self) -> bool {
        let trouble = self.namespaces.trouble.as_ref();
        self.namespaces.listed.is_some()
            || trouble.is_some_and(|trouble| trouble.reason == Reason::Forbidden)
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

    fn namespace(&mut self, change: Change<Mark>) {
        self.pods_changed |= match change {
            Change::Reset(version, items) => {
                tracing::debug!(namespaces = items.len(), version, "namespaces listed");
                let first = self.namespaces.reset();
                self.index.reset_namespaces(&version, items) || first
            }
            Change::Apply(item) => self.index.apply_namespace(item),
            Change::Delete(item) => self.index.delete_namespace(&item),
            Change::WatchError(trouble) => {
                self.troubles_changed |= self.namespaces.set_trouble(trouble);
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
        if self.pods_changed && self.pods_from().is_some_and(|from| from <= now) {
            self.pods_changed = false;
            let pods = self.index.parsed();
            if let Some(last_sent) = &self.last_sent
                && self.namespaces_are_known()
            {
                let _ = last_sent.send_replace(Arc::new(pods.clone()));
            }
            self.tx.send(SourceEvent::Replace(pods)).await?;
            self.listed = None;
        }
        Ok(())
    }

    /// Whether the pods of an earlier daemon are served, with the namespaces' annotations of that time.
    fn served_before(&self) -> bool {
        self.known_before > 0 && self.pods.listed.is_none()
    }

    fn all_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(trouble) = &self.pods.trouble {
            let meanwhile = if self.pods.listed.is_some() || self.served_before() {
                "pods are served as last known"
            } else {
                "no pod is served until it answers"
            };
            problems.push(format!("{}; {meanwhile}", trouble.text));
        }
        if let Some(trouble) = &self.namespaces.trouble {
            let meanwhile = if self.namespaces.listed.is_some() || self.served_before() {
                "annotations of namespaces apply as last known"
            } else {
                "annotations of namespaces are ignored"
            };
            problems.push(format!("{}; {meanwhile}", trouble.text));
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
