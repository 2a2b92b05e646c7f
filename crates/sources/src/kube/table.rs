//! All known objects of one kind. The result does not depend on the order in which events arrive.
//!
//! An object's `resourceVersion` is the revision of the store at which it was written. Kubernetes guarantees
//! since 1.35 that those of one kind can be compared as numbers (KEP-5504), and in practice they have been
//! comparable since etcd 3. A version that is not a number counts as newer than all before it.

use std::collections::{BTreeMap, VecDeque};

use super::object::Name;

/// How many deleted objects are remembered, so that late events do not bring them back.
const TOMBSTONES: usize = 1024;

/// One object and the value kept of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item<V> {
    /// Its name.
    pub name: Name,
    /// `metadata.uid`; may be empty.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// The value kept of it.
    pub value: V,
}

/// All objects of one kind. Each method that changes them returns whether any value has changed.
#[derive(Debug)]
pub struct Table<V> {
    entries: BTreeMap<Name, Entry<V>>,
    /// The version of the last list: an object that is not newer was in the list, or was deleted by then.
    floor: Option<u64>,
    /// At which versions objects were deleted since, oldest first.
    graves: VecDeque<(Name, u64)>,
}

#[derive(Debug)]
struct Entry<V> {
    uid: String,
    version: Option<u64>,
    value: V,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            floor: None,
            graves: VecDeque::new(),
        }
    }
}

impl<V: PartialEq> Table<V> {
    /// An object was added or modified.
    pub fn apply(&mut self, item: Item<V>) -> bool {
        let version = number(&item.version);
        let old = self.entries.get(&item.name);
        if not_newer(version, self.floor)
            || not_newer(version, old.and_then(|entry| entry.version))
            || not_newer(version, self.deleted_at(&item.name))
        {
            return false;
        }
        let changed = old.is_none_or(|entry| entry.value != item.value);
        let entry = Entry {
            uid: item.uid,
            version,
            value: item.value,
        };
        let _ = self.entries.insert(item.name, entry);
        changed
    }

    /// The object `name` was deleted, at `version`.
    pub fn delete(&mut self, name: &Name, uid: &str, version: &str) -> bool {
        let version = number(version);
        if not_newer(version, self.floor) || not_newer(version, self.deleted_at(name)) {
            return false;
        }
        if let Some(version) = version {
            self.graves.retain(|(buried, _)| buried != name);
            if self.graves.len() == TOMBSTONES {
                let _ = self.graves.pop_front();
            }
            self.graves.push_back((name.clone(), version));
        }
        let Some(entry) = self.entries.get(name) else {
            return false;
        };
        let survives = match (entry.version, version) {
            (Some(known), Some(deleted)) => known > deleted,
            // Another object has taken this name since.
            _ => !entry.uid.is_empty() && !uid.is_empty() && entry.uid != uid,
        };
        !survives && self.entries.remove(name).is_some()
    }

    /// `items` are all objects at `version`; all previous state is dropped.
    pub fn reset(&mut self, version: &str, items: Vec<Item<V>>) -> bool {
        let old = std::mem::take(&mut self.entries);
        self.floor = None;
        self.graves.clear();
        for item in items {
            let _ = self.apply(item);
        }
        self.floor = number(version);
        let same = old.len() == self.entries.len()
            && old
                .iter()
                .zip(&self.entries)
                .all(|(old, new)| old.0 == new.0 && old.1.value == new.1.value);
        !same
    }

    /// The value kept of the object `name`.
    pub fn get(&self, name: &Name) -> Option<&V> {
        self.entries.get(name).map(|entry| &entry.value)
    }

    /// All objects, by name, each with its UID.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &str, &V)> {
        self.entries
            .iter()
            .map(|(name, entry)| (name, entry.uid.as_str(), &entry.value))
    }

    fn deleted_at(&self, name: &Name) -> Option<u64> {
        self.graves
            .iter()
            .find(|(buried, _)| buried == name)
            .map(|(_, version)| *version)
    }
}

fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

/// Whether an event of `version` is not newer than the state at `known`.
fn not_newer(version: Option<u64>, known: Option<u64>) -> bool {
    matches!((version, known), (Some(version), Some(known)) if version <= known)
}
