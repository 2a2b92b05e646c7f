//! How the watches of the API server are, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::object::Resource;
use super::watch_error::Reason;

/// How both watches are. Written by the tasks that watch, read at each scrape.
#[derive(Debug, Default)]
pub struct Health {
    pods: WatchHealth,
    namespaces: WatchHealth,
}

/// How one watch is.
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
    /// That of one of the watches.
    pub fn of(&self, resource: Resource) -> &WatchHealth {
        match resource {
            Resource::Pods => &self.pods,
            Resource::Namespaces => &self.namespaces,
        }
    }
}

impl WatchHealth {
    /// The watch stands.
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

    /// The watch no longer stands.
    pub fn down(&self) {
        self.contact.lock().up = false;
    }

    /// Everything was listed.
    pub fn listed(&self) {
        let _ = self.lists.fetch_add(1, Ordering::Relaxed);
        self.heard();
    }

    /// Something went wrong.
    pub fn trouble(&self, reason: Reason) {
        if let Some(count) = Reason::ALL
            .iter()
            .position(|r| *r == reason)
            .and_then(|index| self.troubles.get(index))
        {
            let _ = count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// This many objects can't be read.
    pub fn set_unreadable(&self, count: usize) {
        self.unreadable
            .store(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether the watch stands.
    pub fn is_up(&self) -> bool {
        self.contact.lock().up
    }

    /// Time since the server was last heard of; none before it was.
    pub fn silence(&self) -> Option<Duration> {
        self.contact.lock().heard.map(|heard| heard.elapsed())
    }

    /// How often everything was listed.
    pub fn lists(&self) -> u64 {
        self.lists.load(Ordering::Relaxed)
    }

    /// How many objects can't be read.
    pub fn unreadable(&self) -> u64 {
        self.unreadable.load(Ordering::Relaxed)
    }

    /// How often each kind of trouble was met.
    pub fn troubles(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL
            .into_iter()
            .zip(&self.troubles)
            .map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }
}
