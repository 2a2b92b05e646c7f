//! Readiness of the daemon: each part that the daemon requires holds a named guard until the part is
//! available, and takes it again if the part becomes unavailable. The daemon is ready when no guard is held.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// A phase of the daemon's life cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Has not been ready yet.
    Starting,
    /// Has been ready; a guard that is taken again later is listed as pending.
    Serving,
    /// Has received the signal to stop, and finishes the work in progress.
    Draining,
}

impl State {
    /// Name in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

/// Shared by all parts that can hold a guard. Clones share the same state.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// For each name, the number of guards that are held.
    held: BTreeMap<String, usize>,
    was_ready: bool,
    draining: bool,
}

/// Prevents readiness until it is dropped.
#[must_use = "dropped at once, it blocks nothing"]
pub struct BlockReady {
    name: String,
    readiness: Readiness,
}

// === impl Readiness ===

impl Readiness {
    /// Makes the daemon not ready until the guard is dropped. `name` is shown to operators: it names the part
    /// that the daemon waits for (`kubelet`).
    pub fn block(&self, name: impl Into<String>) -> BlockReady {
        let name = name.into();
        *self.0.lock().held.entry(name.clone()).or_default() += 1;
        BlockReady {
            name,
            readiness: self.clone(),
        }
    }

    /// Makes the daemon not ready permanently.
    pub fn drain(&self) {
        self.0.lock().draining = true;
    }

    /// The parts that the daemon waits for, in alphabetical order, `draining` last; empty when ready.
    pub fn pending(&self) -> Vec<String> {
        let inner = self.0.lock();
        let draining = inner.draining.then(|| "draining".to_owned());
        inner.held.keys().cloned().chain(draining).collect()
    }

    /// The current phase.
    pub fn state(&self) -> State {
        let inner = self.0.lock();
        if inner.draining {
            State::Draining
        } else if inner.was_ready || inner.held.is_empty() {
            State::Serving
        } else {
            State::Starting
        }
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.pending()).finish()
    }
}

// === impl BlockReady ===

impl Drop for BlockReady {
    fn drop(&mut self) {
        let mut inner = self.readiness.0.lock();
        if let Some(count) = inner.held.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                let _ = inner.held.remove(&self.name);
            }
        }
        inner.was_ready |= inner.held.is_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_the_last_guard_is_dropped() {
        let readiness = Readiness::default();
        let hooks = readiness.block("hooks");
        let pods = readiness.block("pods");
        assert_eq!(readiness.pending(), ["hooks", "pods"]);
        assert_eq!(readiness.state(), State::Starting);
        drop(hooks);
        assert_eq!(readiness.pending(), ["pods"]);
        assert_eq!(readiness.state(), State::Starting);
        drop(pods);
        assert!(readiness.pending().is_empty());
        assert_eq!(readiness.state(), State::Serving);
    }

    #[test]
    fn a_guard_that_is_taken_again_is_pending_while_the_state_stays_serving() {
        let readiness = Readiness::default();
        drop(readiness.block("hooks"));
        let again = readiness.block("hooks");
        assert_eq!(readiness.pending(), ["hooks"]);
        assert_eq!(readiness.state(), State::Serving);
        drop(again);
        assert!(readiness.pending().is_empty());
    }

    #[test]
    fn two_guards_with_one_name_must_both_be_dropped() {
        let readiness = Readiness::default();
        let (first, second) = (readiness.block("hooks"), readiness.block("hooks"));
        drop(first);
        assert_eq!(readiness.pending(), ["hooks"]);
        drop(second);
        assert!(readiness.pending().is_empty());
    }

    #[test]
    fn draining_is_never_ready() {
        let readiness = Readiness::default();
        let guard = readiness.block("hooks");
        readiness.drain();
        assert_eq!(readiness.pending(), ["hooks", "draining"]);
        drop(guard);
        assert_eq!(readiness.pending(), ["draining"]);
        assert_eq!(readiness.state(), State::Draining);
    }
}
