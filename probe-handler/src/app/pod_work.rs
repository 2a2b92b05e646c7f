//! Work in pods' network namespaces: on a few threads apart, one piece of each pod at a time, at a pace that follows
//! from what the pod's work costs.
//!
//! Who may configure a pod's network decides what it costs to look into it or to dial inside it, and the kernel can't be
//! interrupted in either. So one pod takes one thread at most, for one twentieth of the time in the long run. Looks and
//! dials have threads of their own: what new pods wait for takes no dial, and looks have an end
//! ([`kernel::netlink`]), while packets take as long as the pod's rules are many.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use kernel::cputime::thread_cpu_time;

/// Looks at the same moment. A look at a usual pod takes less than a millisecond of the processor; to take all of these
/// threads all of the time needs more than [`REST`] times as many pods that do their worst.
const LOOKS: usize = 4;

/// How many times as long as its last work has cost a pod is left in peace.
const REST: u32 = 20;

/// The threads.
pub struct PodPool {
    looks: Arc<Semaphore>,
    dials: Arc<Semaphore>,
}

impl PodPool {
    /// For a machine with this many processors: dials take half of them at most.
    pub fn new(processors: usize) -> Arc<Self> {
        Arc::new(Self {
            looks: Arc::new(Semaphore::new(LOOKS)),
            dials: Arc::new(Semaphore::new((processors / 2).max(1))),
        })
    }

    /// A thread to look into a namespace, once one is free.
    pub async fn look(&self) -> Permit {
        // The semaphores are never closed; work without a permit does no harm.
        Permit(Arc::clone(&self.looks).acquire_owned().await.ok())
    }

    /// A thread to dial, once one is free.
    pub async fn dial(&self) -> Permit {
        Permit(Arc::clone(&self.dials).acquire_owned().await.ok())
    }
}

/// A thread that is free for one piece of work.
#[expect(dead_code, reason = "held for its drop")]
pub struct Permit(Option<OwnedSemaphorePermit>);

/// One pod's share of the threads.
pub struct PodWork {
    pool: Arc<PodPool>,
    /// When the pod's next work may begin. Locked while there is some under way.
    next: Arc<Mutex<Instant>>,
}

impl PodWork {
    /// Of a pod for which nothing has been done yet.
    pub fn new(pool: Arc<PodPool>) -> Self {
        Self {
            pool,
            next: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// The threads.
    pub fn pool(&self) -> &PodPool {
        &self.pool
    }

    /// Waits until it is the pod's turn: nothing else is done for it, and it has rested.
    pub async fn turn(&self) -> Turn {
        let next = Arc::clone(&self.next).lock_owned().await;
        sleep_until(*next).await;
        Turn {
            next,
            cost: Duration::ZERO,
        }
    }
}

/// A pod's turn: as long as it lasts, nobody else does any work for the pod. What it costs counts when it is over, also
/// where nobody has waited for that.
pub struct Turn {
    next: OwnedMutexGuard<Instant>,
    cost: Duration,
}

impl Turn {
    /// Does `work` on a thread apart. Dropping the future does not end the work, nor the turn.
    ///
    /// # Panics
    /// As `work` does.
    pub async fn work<T: Send + 'static>(
        mut self,
        permit: Permit,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> (T, Self) {
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let before = thread_cpu_time();
            let result = work();
            self.cost += thread_cpu_time().saturating_sub(before);
            (result, self)
        });
        match done.await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.next = Instant::now() + rest(self.cost);
    }
}

/// For how long a pod rests whose work has cost this much processor time.
fn rest(cost: Duration) -> Duration {
    cost.saturating_mul(REST)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_pod_rests_twenty_times_as_long_as_its_work_has_cost() {
        assert_eq!(rest(Duration::ZERO), Duration::ZERO);
        assert_eq!(rest(Duration::from_micros(300)), Duration::from_millis(6));
        assert_eq!(rest(Duration::from_millis(100)), Duration::from_secs(2));
        assert_eq!(rest(Duration::MAX), Duration::MAX);
    }

    #[tokio::test]
    async fn work_that_costs_is_followed_by_a_rest() {
        let work = PodWork::new(PodPool::new(1));
        let permit = work.pool().look().await;
        let turn = work.turn().await;
        let burn = || {
            let begun = thread_cpu_time();
            while thread_cpu_time() - begun < Duration::from_millis(5) {
                std::hint::black_box(0);
            }
        };
        let ((), turn) = turn.work(permit, burn).await;
        drop(turn);
        let over = Instant::now();
        drop(work.turn().await);
        assert!(over.elapsed() >= Duration::from_millis(90));
    }

    #[tokio::test]
    async fn a_pod_has_one_thread_though_nobody_waits_for_its_work() {
        let work = PodWork::new(PodPool::new(1));
        let (go, wait) = mpsc::channel::<()>();
        let permit = work.pool().dial().await;
        let turn = work.turn().await;
        // Begun, and given up.
        let begun = turn.work(permit, move || wait.recv());
        assert!(
            tokio::time::timeout(Duration::from_millis(1), begun)
                .await
                .is_err()
        );
        let mut next = std::pin::pin!(work.turn());
        assert!(
            tokio::time::timeout(Duration::from_millis(1), &mut next)
                .await
                .is_err()
        );
        // Nor is there another thread to dial, but there is one to look.
        let dial = tokio::time::timeout(Duration::from_millis(1), work.pool().dial());
        assert!(dial.await.is_err());
        drop(work.pool().look().await);
        go.send(()).expect("work under way");
        drop(next.await);
    }

    #[tokio::test]
    async fn a_panic_in_the_work_reaches_who_waits_for_it() {
        let work = PodWork::new(PodPool::new(1));
        let task = tokio::spawn(async move {
            let permit = work.pool().look().await;
            let turn = work.turn().await;
            let ((), _turn) = turn.work(permit, || panic!("on purpose")).await;
        });
        assert!(task.await.expect_err("a panic").is_panic());
    }
}
