//! The namespaces of this node's pods: one watch for each, from its first pod to its last.
//!
//! A watch of all namespaces would make each node receive each change of any namespace of the cluster. The API server
//! delivers a watch of one object by name without looking at others, so the cost of a node does not grow with the cluster.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::sync::{mpsc, watch as watch_channel};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Duration, Instant};

use super::index::NamespaceRecord;
use super::watch::Change;
use super::watch_error::{Reason, WatchError};

/// A change of the namespace with this name.
pub type NamespaceChange = (String, Change<NamespaceRecord>);

/// Keeps one watch for each namespace in `wanted`; `start` makes one, which ends when the receiver of its changes is dropped.
/// Returns when the sender of `wanted` is dropped, or `changes` are.
pub async fn watch<F: Future<Output = ()> + Send + 'static>(
    mut wanted: watch_channel::Receiver<BTreeSet<String>>,
    changes: mpsc::Sender<NamespaceChange>,
    start: impl Fn(String) -> F,
) {
    let mut running: HashMap<String, AbortHandle> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let names = wanted.borrow_and_update().clone();
        running.retain(|name, task| {
            let stays = names.contains(name);
            if !stays {
                task.abort();
            }
            stays
        });
        for name in names {
            if let Entry::Vacant(vacant) = running.entry(name) {
                let task = tasks.spawn(start(vacant.key().clone()));
                let _ = vacant.insert(task);
            }
        }
        while let Some(ended) = tasks.try_join_next() {
            resume_panic(ended);
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() {
                break;
            },
            () = changes.closed() => break,
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => resume_panic(ended),
        }
    }
}

/// A watch that panics must not go unnoticed.
fn resume_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

/// The state of the watches of namespaces.
#[derive(Debug, Default)]
pub struct Progress {
    of: BTreeMap<String, State>,
}

#[derive(Debug)]
struct State {
    /// Since when it has pods.
    since: Instant,
    is_read: bool,
    trouble: Option<WatchError>,
}

impl State {
    /// Whether its labels are known, or never will be.
    fn is_known(&self) -> bool {
        let trouble = self.trouble.as_ref();
        self.is_read || trouble.is_some_and(|trouble| trouble.reason == Reason::Forbidden)
    }
}

impl Progress {
    /// Sets which namespaces have pods; returns whether the set has changed.
    pub fn set(&mut self, names: &BTreeSet<String>, now: Instant) -> bool {
        if self.of.keys().eq(names) {
            return false;
        }
        self.of.retain(|name, _| names.contains(name));
        for name in names {
            let _ = self.of.entry(name.clone()).or_insert(State {
                since: now,
                is_read: false,
                trouble: None,
            });
        }
        true
    }

    /// Whether `name` has pods.
    pub fn has(&self, name: &str) -> bool {
        self.of.contains_key(name)
    }

    /// Namespace `name` was read. Returns whether this is the first time.
    pub fn read(&mut self, name: &str) -> bool {
        self.of
            .get_mut(name)
            .is_some_and(|state| !std::mem::replace(&mut state.is_read, true))
    }

    /// The state of the watch of `name`. Returns whether that has changed.
    pub fn set_trouble(&mut self, name: &str, trouble: Option<WatchError>) -> bool {
        let Some(state) = self.of.get_mut(name) else {
            return false;
        };
        let text = |trouble: &Option<WatchError>| trouble.as_ref().map(|one| one.text.clone());
        let is_news = text(&state.trouble) != text(&trouble);
        state.trouble = trouble;
        is_news
    }

    /// Whether each namespace is known, or never will be.
    pub fn all_known(&self) -> bool {
        self.of.values().all(State::is_known)
    }

    /// The unknown namespaces whose first pod appeared less than `wait` ago.
    pub fn awaited(&self, wait: Duration, now: Instant) -> BTreeSet<String> {
        let awaited = |state: &State| !state.is_known() && now < state.since + wait;
        let names = self.of.iter().filter(|(_, state)| awaited(state));
        names.map(|(name, _)| name.clone()).collect()
    }

    /// When the wait for the first of the namespaces awaited at `now` ends.
    pub fn awaited_until(&self, wait: Duration, now: Instant) -> Option<Instant> {
        let unknown = self.of.values().filter(|state| !state.is_known());
        let until = unknown.map(|state| state.since + wait);
        until.filter(|until| *until > now).min()
    }

    /// Each failure, and whether all namespaces that have it were read before.
    pub fn troubles(&self) -> BTreeMap<&str, bool> {
        let mut troubles = BTreeMap::new();
        for state in self.of.values() {
            if let Some(trouble) = &state.trouble {
                *troubles.entry(trouble.text.as_str()).or_insert(true) &= state.is_read;
            }
        }
        troubles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(1);

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_namespace_is_awaited_until_it_is_read_or_the_wait_is_over() {
        let start = Instant::now();
        let mut progress = Progress::default();
        assert!(progress.all_known(), "there are none");
        assert!(progress.set(&names(&["a", "b"]), start));
        assert!(!progress.set(&names(&["a", "b"]), start));
        assert!(progress.read("a"));
        assert!(!progress.read("a"));
        assert!(!progress.read("c"), "it has no pods");
        assert_eq!(progress.awaited(WAIT, start), names(&["b"]));
        assert_eq!(progress.awaited_until(WAIT, start), Some(start + WAIT));
        assert_eq!(progress.awaited(WAIT, start + WAIT), names(&[]));
        assert_eq!(progress.awaited_until(WAIT, start + WAIT), None);
        assert!(!progress.all_known());
        // Its pods are deleted, and new ones appear.
        assert!(progress.set(&names(&["b"]), start));
        assert!(progress.set(&names(&["a", "b"]), start + WAIT));
        assert_eq!(progress.awaited(WAIT, start + WAIT), names(&["a"]));
    }

    #[test]
    fn a_failure_of_many_watches_is_one_problem() {
        let mut progress = Progress::default();
        let _ = progress.set(&names(&["a", "b", "c"]), Instant::now());
        let _ = progress.read("a");
        let down = || Some(WatchError::new(Reason::Unreachable, "no route"));
        assert!(progress.set_trouble("a", down()));
        assert!(!progress.set_trouble("a", down()));
        assert_eq!(progress.troubles(), BTreeMap::from([("no route", true)]));
        assert!(progress.set_trouble("b", down()));
        assert_eq!(progress.troubles(), BTreeMap::from([("no route", false)]));
        let forbidden = Some(WatchError::new(Reason::Forbidden, "not allowed"));
        assert!(progress.set_trouble("b", forbidden));
        let _ = progress.read("c");
        assert!(progress.all_known(), "b never will be");
    }
}
