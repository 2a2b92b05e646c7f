//! The state of the watches on the API server, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::object::Resource;
use super::watch_error::Reason;

/// The state of both watches. The tasks that watch write it, each scrape reads it.
#[derive(Debug, Default)]
pub struct Health {
    pods: WatchHealth,
    namespaces: WatchHealth,
}

/// The state of one watch.
#[derive(Debug, Default)]
pub struct WatchHealth {
    contact: Mutex<Contact>,
    lists: AtomicU64,
    unreadable: AtomicU64,
    troubles: [AtomicU64; Reason::ALL.len()],
}

#[derive(Debug, Default)]
struct Contact {
    up: bool,
    heard: Option<Instant>,
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
    /// The watch is established.
    pub fn up(&self) {
        *self.contact.lock() = Contact {
            up: true,
            heard: Some(Instant::now()),
        };
    }

    /// The server has sent something.
    pub fn heard(&self) {
        self.contact.lock().heard = Some(Instant::now());
    }

    /// The watch has ended.
    pub fn down(&self) {
        self.contact.lock().up = false;
    }

    /// All objects were listed.
    pub fn listed(&self) {
        let _ = self.lists.fetch_add(1, Ordering::Relaxed);
        self.heard();
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

    /// Whether the watch is established.
    pub fn is_up(&self) -> bool {
        self.contact.lock().up
    }

    /// Time since the server last sent something; none if it never did.
    pub fn silence(&self) -> Option<Duration> {
        self.contact.lock().heard.map(|heard| heard.elapsed())
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
