//! Memory for answers that their clients have not read yet: bounded for all of them together, and the connection
//! whose answer waits for longest goes first. An API server reads at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::connections::Activity;

/// Shared by all connections of a server.
pub(super) struct Answers {
    most: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Bytes of those that are waiting.
    held: usize,
    next: u64,
    /// Length and connection of each answer that is not sent yet, oldest first.
    waiting: BTreeMap<u64, (usize, Arc<Activity>)>,
}

/// An answer's bytes, which count until nobody holds them any more.
struct Held {
    bytes: Bytes,
    id: u64,
    answers: Arc<Answers>,
}

impl Answers {
    /// For `most` bytes.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            inner: Mutex::default(),
        })
    }

    /// The same bytes, counted until they are sent on the connection of `activity`. Where there are too many, the
    /// connections of the oldest are closed.
    pub(super) fn hold(self: &Arc<Self>, bytes: Bytes, activity: &Arc<Activity>) -> Bytes {
        if bytes.is_empty() {
            return bytes;
        }
        let mut inner = self.inner.lock();
        let id = inner.next;
        inner.next += 1;
        inner.held += bytes.len();
        let waiting = (bytes.len(), Arc::clone(activity));
        let _ = inner.waiting.insert(id, waiting);
        while inner.held > self.most && inner.waiting.len() > 1 {
            if let Some((_, (length, oldest))) = inner.waiting.pop_first() {
                inner.held -= length;
                oldest.close();
            }
        }
        drop(inner);
        let answers = Arc::clone(self);
        Bytes::from_owner(Held { bytes, id, answers })
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inner = self.answers.inner.lock();
        if let Some((length, _)) = inner.waiting.remove(&self.id) {
            inner.held -= length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::connections::Connections;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_that_is_not_read_goes() {
        let (answers, connections) = (Answers::new(1000), Connections::new(8));
        let (slow, quick) = (connections.enter(), connections.enter());
        let answer = |bytes: usize, activity| answers.hold(vec![7; bytes].into(), activity);
        let unread = answer(600, &slow.activity);
        // What was read no longer counts, however much it was.
        for _ in 0..10 {
            assert_eq!(answer(300, &quick.activity), vec![7; 300]);
        }
        assert_eq!(answers.inner.lock().held, 600);
        // A part of it is as good as the whole: the memory is one.
        let mut unread = unread;
        drop(unread.split_to(599));
        let another = answer(500, &quick.activity);
        slow.activity.closed().await;
        assert_eq!(answers.inner.lock().held, 500);
        drop((unread, another));
        assert_eq!(answers.inner.lock().held, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_longer_than_all_may_be_is_sent_all_the_same() {
        let (answers, connections) = (Answers::new(1000), Connections::new(8));
        let place = connections.enter();
        let answer = answers.hold(vec![7; 2000].into(), &place.activity);
        assert_eq!(answer.len(), 2000);
        let closed =
            tokio::time::timeout(std::time::Duration::from_secs(1), place.activity.closed());
        assert!(closed.await.is_err());
    }
}
