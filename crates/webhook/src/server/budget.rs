//! Bounds the memory of all bodies that are being read. Beyond the bound, the oldest body is given up. Bodies of an
//! API server are complete within milliseconds, so the oldest belongs to a slow client.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Bytes of each body that do not count, so that an ordinary Pod never waits for a large one.
const FREE: usize = 64 << 10;

/// Shared by all requests of a server.
pub(super) struct Budget {
    inner: Mutex<Inner>,
    freed: Notify,
    most: usize,
}

struct Inner {
    left: usize,
    next: u64,
    /// Bodies being read, oldest first, each with the signal to give it up.
    reading: BTreeMap<u64, Arc<Notify>>,
}

/// A body's share of the memory, returned when dropped.
pub(super) struct Share {
    budget: Arc<Budget>,
    id: u64,
    held: usize,
    given_up: Arc<Notify>,
}

/// There is no memory left, or another body took it.
#[derive(Debug)]
pub(super) struct NoRoom;

impl Budget {
    pub(super) fn new(bytes: usize, requests: usize) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                left: bytes,
                next: 0,
                reading: BTreeMap::new(),
            }),
            freed: Notify::new(),
            most: requests,
        })
    }

    /// A share for a body that will be read next.
    pub(super) fn share(self: &Arc<Self>) -> Share {
        let given_up = Arc::new(Notify::new());
        let mut inner = self.inner.lock();
        if inner.reading.len() >= self.most
            && let Some((_, oldest)) = inner.reading.pop_first()
        {
            oldest.notify_one();
        }
        let id = inner.next;
        inner.next += 1;
        let _ = inner.reading.insert(id, Arc::clone(&given_up));
        Share {
            budget: Arc::clone(self),
            id,
            held: 0,
            given_up,
        }
    }
}

impl Share {
    /// Reserves memory for a body of `len` bytes so far.
    pub(super) async fn cover(&mut self, len: usize) -> Result<(), NoRoom> {
        let needed = len.saturating_sub(FREE).saturating_sub(self.held);
        if needed == 0 {
            return Ok(());
        }
        loop {
            // Register before the check, so that memory returned in between is noticed.
            let freed = self.budget.freed.notified();
            {
                let mut inner = self.budget.inner.lock();
                if inner.left >= needed {
                    inner.left -= needed;
                    self.held += needed;
                    return Ok(());
                }
                match inner.reading.pop_first() {
                    Some((id, oldest)) if id != self.id => oldest.notify_one(),
                    _ => return Err(NoRoom),
                }
            }
            tokio::select! {
                () = freed => {}
                () = self.given_up() => return Err(NoRoom),
            }
        }
    }

    /// Waits until another body needs this body's memory.
    pub(super) async fn given_up(&self) {
        self.given_up.notified().await;
    }

    /// The body is complete: it keeps its memory and can no longer be given up.
    pub(super) fn complete(&self) {
        let _ = self.budget.inner.lock().reading.remove(&self.id);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut inner = self.budget.inner.lock();
        let _ = inner.reading.remove(&self.id);
        inner.left += self.held;
        drop(inner);
        self.budget.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_body_is_given_up_for_a_new_one() {
        let budget = Budget::new(1000, 8);
        let mut slow = budget.share();
        slow.cover(FREE + 800).await.expect("room");
        let mut quick = budget.share();
        let reader = tokio::spawn(async move {
            slow.given_up().await;
        });
        quick.cover(FREE + 800).await.expect("freed by the other");
        reader.await.expect("given up");
    }

    #[tokio::test(start_paused = true)]
    async fn a_complete_body_keeps_its_memory() {
        let budget = Budget::new(1000, 8);
        let mut complete = budget.share();
        complete.cover(FREE + 800).await.expect("room");
        complete.complete();
        let mut other = budget.share();
        assert!(other.cover(FREE + 300).await.is_err());
        drop((other, complete));
        budget.share().cover(FREE + 1000).await.expect("given back");
    }

    #[tokio::test(start_paused = true)]
    async fn ordinary_bodies_do_not_count() {
        let budget = Budget::new(0, 8);
        budget.share().cover(FREE).await.expect("free");
        assert!(budget.share().cover(FREE + 1).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_body_is_given_up_when_there_are_too_many() {
        let budget = Budget::new(0, 2);
        let shares = [budget.share(), budget.share(), budget.share()];
        shares[0].given_up().await;
        let second = tokio::time::timeout(std::time::Duration::from_secs(1), shares[1].given_up());
        assert!(second.await.is_err());
    }
}
