//! Counts the connections of a server, and selects which one to close when there are too many.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// All connections of a server.
pub(super) struct Connections {
    began: Instant,
    most: usize,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Activity>>>,
}

/// The activity of one connection.
pub(super) struct Activity {
    began: Instant,
    /// Requests in progress.
    requests: AtomicUsize,
    /// Milliseconds from `began` to the end of the last request; 0: no request yet.
    last: AtomicU64,
    opened: u64,
    close: Notify,
}

/// A connection's place, released when dropped.
pub(super) struct Place {
    connections: Arc<Connections>,
    id: u64,
    pub(super) activity: Arc<Activity>,
}

/// Marks a request as in progress until dropped.
pub(super) struct Busy(Arc<Activity>);

impl Connections {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            most,
            next: AtomicU64::new(0),
            open: Mutex::default(),
        })
    }

    /// A place for a new connection. If none is left, the least important connection is closed: idle ones
    /// before busy ones, then those that never made a request before the others, then the one that has been
    /// in that state for longest.
    pub(super) fn enter(self: &Arc<Self>) -> Place {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let activity = Arc::new(Activity {
            began: self.began,
            requests: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            opened: id,
            close: Notify::new(),
        });
        let mut open = self.open.lock();
        if open.len() >= self.most {
            let least = open.iter().min_by_key(|(_, activity)| activity.weight());
            if let Some(id) = least.map(|(id, _)| *id)
                && let Some(least) = open.remove(&id)
            {
                least.close();
            }
        }
        let _ = open.insert(id, Arc::clone(&activity));
        drop(open);
        Place {
            connections: Arc::clone(self),
            id,
            activity,
        }
    }

    /// The number of connections.
    pub(super) fn count(&self) -> usize {
        self.open.lock().len()
    }
}

impl Activity {
    fn weight(&self) -> (bool, bool, u64, u64) {
        let last = self.last.load(Ordering::Relaxed);
        (self.is_busy(), last > 0, last, self.opened)
    }

    /// Records that a request begins.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        let _ = self.requests.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    pub(super) fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }

    /// When the last request ended, if there was one.
    pub(super) fn last(&self) -> Option<Instant> {
        match self.last.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(self.began + Duration::from_millis(millis)),
        }
    }

    /// Signals the connection to close.
    pub(super) fn close(&self) {
        self.close.notify_one();
    }

    /// Waits until the connection has to close.
    pub(super) async fn closed(&self) {
        self.close.notified().await;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let millis = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last.store(millis.max(1), Ordering::Relaxed);
        let _ = self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.connections.open.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `place` was signalled to close.
    async fn is_closed(place: &Place) -> bool {
        tokio::time::timeout(Duration::from_millis(1), place.activity.closed())
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_requests_is_closed_first() {
        let connections = Connections::new(3);
        let served = connections.enter();
        drop(served.activity.begin());
        let busy = connections.enter();
        let _request = busy.activity.begin();
        let silent = connections.enter();
        let newest = connections.enter();
        assert!(is_closed(&silent).await);
        let _last = connections.enter();
        assert!(is_closed(&newest).await);
        assert!(!is_closed(&served).await && !is_closed(&busy).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_has_been_idle_for_longest_is_closed() {
        let connections = Connections::new(2);
        let places = [connections.enter(), connections.enter()];
        drop(places[1].activity.begin());
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(places[0].activity.begin());
        let _new = connections.enter();
        assert!(is_closed(&places[1]).await && !is_closed(&places[0]).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_place_is_released() {
        let connections = Connections::new(1);
        drop(connections.enter());
        assert_eq!(connections.count(), 0);
    }
}
