//! Keeps the number of Events small, as client-go's `EventCorrelator` does (kubernetes
//! staging/src/k8s.io/client-go/tools/record/events_cache.go): equal Events are one object with a count, many similar ones
//! become one, and each pod has a limit. No clock, no client; memory is bounded.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use crate::event::{PodEvent, Severity};

/// Number of different messages of one pod and reason within [`SIMILAR_MS`] at which they begin to be
/// combined.
const SIMILAR: usize = 10;
const SIMILAR_MS: u64 = 600_000;
/// Maximum burst of writes for one pod, and the time after which one more is allowed.
const BURST: f64 = 25.0;
const REFILL_MS: f64 = 300_000.0;
/// Maximum number of entries of each table; when it is full, the least recently used entry is removed.
const KNOWN: usize = 1024;

/// What to write for an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A new object.
    Create {
        /// How often the Event has happened.
        count: i32,
        /// When it first happened.
        first_ms: u64,
    },
    /// A change of the object with that name.
    Update {
        /// Its name.
        name: String,
        /// How often the Event has happened.
        count: i32,
        /// When it first happened.
        first_ms: u64,
    },
    /// Nothing: the pod has reached its limit.
    Nothing,
}

/// What makes Events equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    similar: Similar,
    /// `None` if the Event is combined from similar ones.
    message: Option<(Option<String>, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Similar {
    uid: String,
    severity: Severity,
    reason: &'static str,
}

/// The Events so far.
#[derive(Debug, Default)]
pub struct Correlator {
    similar: Table<Similar, Messages>,
    written: Table<Key, Written>,
    budgets: Table<String, Budget>,
}

#[derive(Debug)]
struct Messages {
    texts: BTreeSet<String>,
    last_ms: u64,
}

#[derive(Clone, Debug)]
struct Written {
    /// `None` if it has not been written yet.
    name: Option<String>,
    count: i32,
    first_ms: u64,
}

#[derive(Debug)]
struct Budget {
    tokens: f64,
    at_ms: u64,
}

impl Correlator {
    /// What to write for `event`, and its key. Combining may change its message.
    pub fn add(&mut self, event: PodEvent) -> (PodEvent, Key, Write) {
        let (event, key) = self.combined(event);
        let written = self.written.entry(&key, || Written {
            name: None,
            count: 0,
            first_ms: event.at_ms,
        });
        written.count = written.count.saturating_add(1);
        let Written {
            name,
            count,
            first_ms,
        } = written.clone();
        let budget = self.budgets.entry(&event.pod.uid, || Budget {
            tokens: BURST,
            at_ms: event.at_ms,
        });
        let write = match (budget.take(event.at_ms), name) {
            (false, _) => Write::Nothing,
            (true, None) => Write::Create { count, first_ms },
            (true, Some(name)) => Write::Update {
                name,
                count,
                first_ms,
            },
        };
        (event, key, write)
    }

    /// Records that the Event with `key` is the object `name`; `None`: it no longer exists.
    pub fn wrote(&mut self, key: &Key, name: Option<String>) {
        if let Some(written) = self.written.get(key) {
            written.name = name;
        }
    }

    fn combined(&mut self, event: PodEvent) -> (PodEvent, Key) {
        let similar = Similar {
            uid: event.pod.uid.clone(),
            severity: event.severity,
            reason: event.reason,
        };
        let messages = self.similar.entry(&similar, || Messages {
            texts: BTreeSet::new(),
            last_ms: event.at_ms,
        });
        if event.at_ms.saturating_sub(messages.last_ms) > SIMILAR_MS {
            messages.texts.clear();
        }
        messages.last_ms = event.at_ms;
        let is_known = messages.texts.contains(&event.message);
        if !is_known && messages.texts.len() >= SIMILAR {
            let message = format!("(combined from similar events): {}", event.message);
            let key = Key {
                similar,
                message: None,
            };
            return (PodEvent { message, ..event }.bounded(), key);
        }
        let _new = messages.texts.insert(event.message.clone());
        let key = Key {
            similar,
            message: Some((event.container.clone(), event.message.clone())),
        };
        (event, key)
    }
}

impl Budget {
    fn take(&mut self, now_ms: u64) -> bool {
        // The clock may be set back.
        let passed = now_ms.saturating_sub(self.at_ms);
        self.at_ms = now_ms;
        self.tokens = (self.tokens + passed as f64 / REFILL_MS).min(BURST);
        let has_one = self.tokens >= 1.0;
        if has_one {
            self.tokens -= 1.0;
        }
        has_one
    }
}

/// A map of at most [`KNOWN`] entries.
#[derive(Debug)]
struct Table<K, V> {
    entries: HashMap<K, (u64, V)>,
    uses: u64,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            uses: 0,
        }
    }
}

impl<K: Clone + Eq + Hash, V> Table<K, V> {
    /// The value of `key`; inserts `new` if there is none.
    fn entry(&mut self, key: &K, new: impl FnOnce() -> V) -> &mut V {
        self.uses += 1;
        if !self.entries.contains_key(key) && self.entries.len() >= KNOWN {
            let oldest = self.entries.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                let _ = self.entries.remove(&oldest);
            }
        }
        let entry = self.entries.entry(key.clone());
        let (used, value) = entry.or_insert_with(|| (0, new()));
        *used = self.uses;
        value
    }

    fn get(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::PodId;

    fn event(uid: &str, message: &str, at_ms: u64) -> PodEvent {
        PodEvent {
            pod: PodId {
                namespace: "shop".to_owned(),
                name: "cart".to_owned(),
                uid: uid.to_owned(),
            },
            container: None,
            severity: Severity::Warning,
            reason: "ProbeFailed",
            message: message.to_owned(),
            at_ms,
        }
    }

    /// Adds an Event as if it had been written.
    fn add(correlator: &mut Correlator, event: PodEvent) -> (String, Write) {
        let (event, key, write) = correlator.add(event);
        if let Write::Create { .. } = write {
            correlator.wrote(&key, Some(format!("object of {}", event.message)));
        }
        (event.message, write)
    }

    #[test]
    fn an_equal_event_counts_in_the_object_that_is_there() {
        let mut correlator = Correlator::default();
        let (_, first) = add(&mut correlator, event("u", "a", 1_000));
        assert_eq!(
            first,
            Write::Create {
                count: 1,
                first_ms: 1_000
            }
        );
        let (_, again) = add(&mut correlator, event("u", "a", 2_000));
        assert_eq!(
            again,
            Write::Update {
                name: "object of a".to_owned(),
                count: 2,
                first_ms: 1_000
            }
        );
        let (_, other) = add(&mut correlator, event("v", "a", 2_000));
        assert!(matches!(other, Write::Create { count: 1, .. }), "{other:?}");
    }

    #[test]
    fn an_object_that_is_gone_is_created_again_with_its_count() {
        let mut correlator = Correlator::default();
        let (_, key, _) = correlator.add(event("u", "a", 1_000));
        correlator.wrote(&key, Some("gone".to_owned()));
        correlator.wrote(&key, None);
        let (_, write) = add(&mut correlator, event("u", "a", 2_000));
        assert!(matches!(write, Write::Create { count: 2, .. }), "{write:?}");
    }

    #[test]
    fn more_than_ten_different_messages_are_combined() {
        let mut correlator = Correlator::default();
        for number in 0..10 {
            let (message, write) = add(&mut correlator, event("u", &format!("{number}"), 1_000));
            assert_eq!(message, format!("{number}"));
            assert!(matches!(write, Write::Create { .. }));
        }
        let (message, write) = add(&mut correlator, event("u", "10", 1_000));
        assert_eq!(message, "(combined from similar events): 10");
        assert!(matches!(write, Write::Create { count: 1, .. }));
        let (_, write) = add(&mut correlator, event("u", "11", 1_000));
        assert!(matches!(write, Write::Update { count: 2, .. }), "{write:?}");
        let (message, _) = add(&mut correlator, event("u", "12", 1_000 + SIMILAR_MS + 1));
        assert_eq!(
            message, "12",
            "after ten minutes they are no longer similar"
        );
    }

    #[test]
    fn a_pod_has_25_writes_and_then_one_in_five_minutes() {
        let mut correlator = Correlator::default();
        let mut write = |uid: &str, at| add(&mut correlator, event(uid, "a", at)).1;
        for _ in 0..25 {
            assert_ne!(write("u", 0), Write::Nothing);
        }
        assert_eq!(write("u", 0), Write::Nothing);
        assert_ne!(
            write("v", 0),
            Write::Nothing,
            "another pod has its own limit"
        );
        assert_eq!(write("u", 299_000), Write::Nothing);
        let later = write("u", 300_000);
        assert!(
            matches!(later, Write::Update { count: 28, .. }),
            "those that were not written count too: {later:?}"
        );
        assert_eq!(write("u", 300_001), Write::Nothing);
    }

    #[test]
    fn memory_is_bounded_and_the_entry_used_longest_ago_is_forgotten() {
        let mut correlator = Correlator::default();
        for number in 0..3 * KNOWN {
            let _ = add(&mut correlator, event(&format!("{number}"), "a", 0));
            let (_, kept) = add(&mut correlator, event("kept", "a", number as u64 * 300_000));
            let created = matches!(kept, Write::Create { .. });
            assert_eq!(created, number == 0, "{number}");
        }
        for len in [
            correlator.similar.entries.len(),
            correlator.written.entries.len(),
            correlator.budgets.entries.len(),
        ] {
            assert_eq!(len, KNOWN);
        }
    }
}
