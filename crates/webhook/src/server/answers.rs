//! Bounds the memory of all answers that clients have not read yet. When it is exceeded, the connection with the
//! oldest unread answer is closed, with all its unread answers. An API server reads answers at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::connections::Activity;

/// Memory for the stream and the task of an answer of any length, in bytes: a generous estimate.
const BESIDE: usize = 4 << 10;

/// Shared by all connections of a server.
pub(super) struct Answers {
    most: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Bytes of the waiting answers, including [`BESIDE`] for each.
    held: usize,
    next: u64,
    /// Bytes and connection of each unsent answer, oldest first.
    waiting: BTreeMap<u64, (usize, Arc<Activity>)>,
}

/// An answer's bytes, which count until they are dropped.
struct Held {
    bytes: Bytes,
    id: u64,
    answers: Arc<Answers>,
}

impl Answers {
    /// A limit of `most` bytes.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            inner: Mutex::default(),
        })
    }

    /// Returns the same bytes, which count until they are sent on the connection of `activity`. Beyond the limit,
    /// the connections with the oldest answers are closed.
    pub(super) fn hold(self: &Arc<Self>, bytes: Bytes, activity: &Arc<Activity>) -> Bytes {
        if bytes.is_empty() {
            return bytes;
        }
        let mut inner = self.inner.lock();
        let id = inner.next;
        inner.next += 1;
        inner.held += bytes.len() + BESIDE;
        let waiting = (bytes.len() + BESIDE, Arc::clone(activity));
        let _ = inner.waiting.insert(id, waiting);
        while inner.held > self.most && inner.waiting.len() > 1 {
            inner.close_the_oldest();
        }
        drop(inner);
        let answers = Arc::clone(self);
        Bytes::from_owner(Held { bytes, id, answers })
    }
}

impl Inner {
    /// Closes the connection of the oldest answer; none of its answers counts any more.
    fn close_the_oldest(&mut self) {
        let Some((_, (_, oldest))) = self.waiting.first_key_value() else {
            return;
        };
        let oldest = Arc::clone(oldest);
        oldest.close();
        let held = &mut self.held;
        self.waiting.retain(|_, (bytes, activity)| {
            let stays = !Arc::ptr_eq(activity, &oldest);
            if !stays {
                *held -= *bytes;
            }
            stays
        });
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
        if let Some((bytes, _)) = inner.waiting.remove(&self.id) {
            inner.held -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::connections::Connections;
    use super::*;

    /// Whether the connection was signalled to close.
    async fn is_closed(activity: &Activity) -> bool {
        let closed = tokio::time::timeout(Duration::from_millis(1), activity.closed());
        closed.await.is_ok()
    }

    fn held(answers: &Answers) -> usize {
        answers.inner.lock().held
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_with_the_oldest_unread_answer_is_closed() {
        let (answers, connections) = (Answers::new(4 * BESIDE), Connections::new(8));
        let (slow, quick) = (connections.enter(), connections.enter());
        let answer = |bytes: usize, activity| answers.hold(vec![7; bytes].into(), activity);
        let mut unread = answer(600, &slow.activity);
        // Answers that were read no longer count, whatever their size.
        for _ in 0..10 {
            assert_eq!(answer(BESIDE, &quick.activity), vec![7; BESIDE]);
        }
        assert_eq!(held(&answers), 600 + BESIDE);
        // While a part of an answer is unread, all its memory counts.
        drop(unread.split_to(599));
        let another = answer(3 * BESIDE, &quick.activity);
        assert!(is_closed(&slow.activity).await && !is_closed(&quick.activity).await);
        assert_eq!(held(&answers), 4 * BESIDE);
        drop((unread, another));
        assert_eq!(held(&answers), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn closing_a_connection_frees_all_its_unread_answers_and_no_others() {
        let (answers, connections) = (Answers::new(4 * BESIDE), Connections::new(8));
        let (slow, quick) = (connections.enter(), connections.enter());
        let answer = |bytes: usize, activity| answers.hold(vec![7; bytes].into(), activity);
        let _first = answer(1, &slow.activity);
        let _of_another = answer(1, &quick.activity);
        let _second = answer(3 * BESIDE, &slow.activity);
        assert!(is_closed(&slow.activity).await && !is_closed(&quick.activity).await);
        assert_eq!(held(&answers), 1 + BESIDE);
    }

    #[tokio::test(start_paused = true)]
    async fn many_short_answers_count_too() {
        let (answers, connections) = (Answers::new(10 * BESIDE), Connections::new(8));
        let slow = connections.enter();
        let quick = connections.enter();
        let short = |activity| answers.hold(vec![7; 3].into(), activity);
        let unread: Vec<_> = (0..9).map(|_| short(&slow.activity)).collect();
        assert!(!is_closed(&slow.activity).await);
        let _one_more = short(&quick.activity);
        assert!(is_closed(&slow.activity).await);
        drop(unread);
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_answer_above_the_limit_is_sent() {
        let (answers, connections) = (Answers::new(1000), Connections::new(8));
        let place = connections.enter();
        let answer = answers.hold(vec![7; 2000].into(), &place.activity);
        assert_eq!(answer.len(), 2000);
        assert!(!is_closed(&place.activity).await);
    }
}
