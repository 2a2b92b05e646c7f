//! The state of the watches on the API server, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::object::Resource;
use super::watch_error::Reason;

/// The state of the watches: one of pods, and one of each namespace that has pods. The tasks that watch write it, each scrape
/// reads it.
#[derive(Debug)]
pub struct Health {
    pods: WatchHealth,
    namespaces: WatchHealth,
}

/// The state of all watches of one kind of objects.
#[derive(Debug, Default)]
pub struct WatchHealth {
    /// Whether it is correct to have no watch, as opposed to not having begun one yet.
    may_be_none: bool,
    contact: Mutex<Contact>,
    lists: AtomicU64,
    unreadable: AtomicU64,
    troubles: [AtomicU64; Reason::ALL.len()],
}

#[derive(Debug, Default)]
struct Contact {
    /// Number of watches, and how many of them are established.
    watches: usize,
    up: usize,
    received: Option<Instant>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            pods: WatchHealth::default(),
            // There may be no pods, and so no namespaces to watch.
            namespaces: WatchHealth {
                may_be_none: true,
                ..WatchHealth::default()
            },
        }
    }
}

impl Health {
    /// The state of the watch on `resource`.
    pub fn of(&self, resource: Resource) -> &WatchHealth {
        match resource {
            Resource::Pods => &self.pods,
            Resource::Namespaces => &self.namespaces,
        }
    }
}

impl WatchHealth {
    /// A watch begins; it is not established yet.
    pub fn register(&self) -> Registered<'_> {
        self.contact.lock().watches += 1;
        Registered {
            of: self,
            is_up: false,
        }
    }

    /// The server has sent something.
    pub fn received(&self) {
        self.contact.lock().received = Some(Instant::now());
    }

    /// All objects were listed.
    pub fn listed(&self) {
        let _ = self.lists.fetch_add(1, Ordering::Relaxed);
        self.received();
    }

    /// A failure occurred.
    pub fn trouble(&self, reason: Reason) {
        if let Some(count) = Reason::ALL
            .iter()
            .position(|r| *r == reason)
            .and_then(|index| self.troubles.get(index))
        {
            let _ = count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sets how many objects can't be read.
    pub fn set_unreadable(&self, count: usize) {
        self.unreadable
            .store(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether all watches are established.
    pub fn is_up(&self) -> bool {
        let contact = self.contact.lock();
        contact.up == contact.watches && (contact.watches > 0 || self.may_be_none)
    }

    /// The number of watches.
    pub fn watches(&self) -> usize {
        self.contact.lock().watches
    }

    /// Time since the server last sent something; `None` if it never did.
    pub fn silence(&self) -> Option<Duration> {
        self.contact
            .lock()
            .received
            .map(|received| received.elapsed())
    }

    /// How often all objects were listed.
    pub fn lists(&self) -> u64 {
        self.lists.load(Ordering::Relaxed)
    }

    /// How many objects can't be read.
    pub fn unreadable(&self) -> u64 {
        self.unreadable.load(Ordering::Relaxed)
    }

    /// How often each kind of failure occurred.
    pub fn troubles(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL
            .into_iter()
            .zip(&self.troubles)
            .map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }
}

/// One watch, until it is dropped.
#[derive(Debug)]
pub struct Registered<'a> {
    of: &'a WatchHealth,
    is_up: bool,
}

impl Registered<'_> {
    /// The watch is established.
    pub fn up(&mut self) {
        self.set(true);
        self.of.received();
    }

    /// The watch has ended. Returns whether it was established.
    pub fn down(&mut self) -> bool {
        self.set(false)
    }

    /// Returns whether it was established before.
    fn set(&mut self, is_up: bool) -> bool {
        let was_up = std::mem::replace(&mut self.is_up, is_up);
        let mut contact = self.of.contact.lock();
        contact.up = contact.up + usize::from(is_up) - usize::from(was_up);
        was_up
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let _was_up = self.set(false);
        self.of.contact.lock().watches -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_up_if_all_of_them_are() {
        let all = Health::default();
        assert!(!all.of(Resource::Pods).is_up(), "not begun");
        let health = all.of(Resource::Namespaces);
        assert!(health.is_up(), "there are no pods");
        let mut one = health.register();
        assert!(!health.is_up());
        one.up();
        assert!(health.is_up());
        let mut other = health.register();
        assert!(!health.is_up());
        other.up();
        one.up();
        assert!(health.is_up());
        assert!(other.down());
        assert!(!other.down());
        assert!(!health.is_up());
        drop(other);
        assert!(health.is_up());
        drop(one);
        assert_eq!(health.watches(), 0);
    }
}
