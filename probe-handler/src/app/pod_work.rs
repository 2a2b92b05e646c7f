//! Runs work in pods' network namespaces on a few separate threads, one piece of work per pod at a time. A pod whose work
//! costs more gets its turn less often.
//!
//! A process that may configure a pod's network controls the cost of looks into it and dials inside it, and the kernel
//! can interrupt neither. So one pod uses at most one thread, and in the long run for one twentieth of the time. Looks and
//! dials have separate threads: new pods wait for looks only, and looks are bounded ([`kernel::netlink`]), while the time
//! of a dial grows with the pod's rules.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use kernel::cputime::thread_cpu_time;

/// Maximum number of concurrent looks. A look at a normal pod takes less than a millisecond of processor time; occupying all
/// of these threads all of the time takes more than [`REST`] times as many hostile pods.
const LOOKS: usize = 4;

/// After work, a pod waits for this many times the processor time of the work.
const REST: u32 = 20;

/// The limits of concurrent work.
pub struct PodPool {
    looks: Arc<Semaphore>,
    dials: Arc<Semaphore>,
}

impl PodPool {
    /// For a machine with this many processors: dials use at most half of them.
    pub fn new(processors: usize) -> Arc<Self> {
        Arc::new(Self {
            looks: Arc::new(Semaphore::new(LOOKS)),
            dials: Arc::new(Semaphore::new((processors / 2).max(1))),
        })
    }

    /// Waits for a free thread to look into a namespace.
    pub async fn look(&self) -> Permit {
        // The semaphores are never closed, and work without a permit would do no harm.
        Permit(Arc::clone(&self.looks).acquire_owned().await.ok())
    }

    /// Waits for a free thread to dial.
    pub async fn dial(&self) -> Permit {
        Permit(Arc::clone(&self.dials).acquire_owned().await.ok())
    }
}

/// A permit to use a thread for one piece of work.
#[expect(dead_code, reason = "held for its drop")]
pub struct Permit(Option<OwnedSemaphorePermit>);

/// One pod's share of the threads.
pub struct PodWork {
    pool: Arc<PodPool>,
    /// When the pod's next work may begin. Locked while work is in progress.
    next: Arc<Mutex<Instant>>,
}

impl PodWork {
    /// For a pod without work so far.
    pub fn new(pool: Arc<PodPool>) -> Self {
        Self {
            pool,
            next: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// The limits of concurrent work.
    pub fn pool(&self) -> &PodPool {
        &self.pool
    }

    /// Waits for the pod's turn: its other work is done, and its waiting time is over.
    pub async fn turn(&self) -> Turn {
        loop {
            let turn = self.turn_at_once().await;
            let next = *turn.next;
            if next <= Instant::now() {
                return turn;
            }
            // Waits without holding the turn, so that other work of the pod need not wait.
            drop(turn);
            sleep_until(next).await;
        }
    }

    /// Waits only until the pod's other work is done: for work that is done once for a pod, and on which its probes depend.
    pub async fn turn_at_once(&self) -> Turn {
        Turn {
            next: Arc::clone(&self.next).lock_owned().await,
            cost: None,
        }
    }
}

/// A pod's turn: while it exists, no other work runs for the pod. The cost of the work is applied when the turn is dropped,
/// even if the caller did not wait for the work.
pub struct Turn {
    next: OwnedMutexGuard<Instant>,
    /// `None`: no work was done.
    cost: Option<Duration>,
}

impl Turn {
    /// Runs `work` on a separate thread. Dropping the future ends neither the work nor the turn.
    ///
    /// # Panics
    /// If `work` panics.
    pub async fn work<T: Send + 'static>(
        mut self,
        permit: Permit,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> (T, Self) {
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let before = thread_cpu_time();
            let result = work();
            let cost = thread_cpu_time().saturating_sub(before);
            self.cost = Some(self.cost.unwrap_or_default() + cost);
            (result, self)
        });
        match done.await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down, and ends this task too.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(cost) = self.cost {
            // Work that did not wait does not shorten the waiting time of the work before it.
            *self.next = (*self.next).max(Instant::now()) + rest(cost);
        }
    }
}

/// How long a pod waits after work that cost this much processor time.
fn rest(cost: Duration) -> Duration {
    cost.saturating_mul(REST)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_pod_waits_twenty_times_the_cost_of_its_work() {
        assert_eq!(rest(Duration::ZERO), Duration::ZERO);
        assert_eq!(rest(Duration::from_micros(300)), Duration::from_millis(6));
        assert_eq!(rest(Duration::from_millis(100)), Duration::from_secs(2));
        assert_eq!(rest(Duration::MAX), Duration::MAX);
    }

    #[tokio::test]
    async fn the_next_turn_waits_after_costly_work() {
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
    async fn work_at_once_waits_for_no_time_that_other_work_of_the_pod_waits_for() {
        let work = PodWork::new(PodPool::new(1));
        let mut turn = work.turn().await;
        turn.cost = Some(Duration::from_secs(3600));
        drop(turn);
        let mut waiting = std::pin::pin!(work.turn());
        let soon = Duration::from_millis(1);
        assert!(tokio::time::timeout(soon, &mut waiting).await.is_err());
        let mut first = work.turn_at_once().await;
        first.cost = Some(Duration::ZERO);
        drop(first);
        assert!(tokio::time::timeout(soon, &mut waiting).await.is_err());
    }

    #[tokio::test]
    async fn a_pod_has_one_thread_even_if_its_work_is_not_awaited() {
        let work = PodWork::new(PodPool::new(1));
        let (go, wait) = mpsc::channel::<()>();
        let permit = work.pool().dial().await;
        let turn = work.turn().await;
        // Started, and its future dropped.
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
        // The only thread for dials is in use, but a thread for looks is free.
        let dial = tokio::time::timeout(Duration::from_millis(1), work.pool().dial());
        assert!(dial.await.is_err());
        drop(work.pool().look().await);
        go.send(()).expect("work under way");
        drop(next.await);
    }

    #[tokio::test]
    async fn a_panic_in_the_work_reaches_the_caller() {
        let work = PodWork::new(PodPool::new(1));
        let task = tokio::spawn(async move {
            let permit = work.pool().look().await;
            let turn = work.turn().await;
            let ((), _turn) = turn.work(permit, || panic!("on purpose")).await;
        });
        assert!(task.await.expect_err("a panic").is_panic());
    }
}
