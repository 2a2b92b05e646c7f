//! The state of a thread that serves connections: whether it is alive, and whether it has the turn to accept.
//!
//! Several threads can serve; one of them accepts. A check that makes the kernel work for a long time (see
//! [`super::cost`]) blocks its thread, and with it all other connections of that thread. Then the next thread accepts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// How often a worker must call [`Worker::beat`].
pub const BEAT: Duration = Duration::from_millis(100);
/// A worker that has been busy with one task for longer than this counts as blocked.
const BUSY: Duration = Duration::from_millis(75);
/// A worker without a beat for longer than this counts as blocked too.
const SILENT: Duration = Duration::from_millis(350);

/// The state of one thread, shared with others. Times are milliseconds since `epoch`, plus one; 0 means never.
#[derive(Debug)]
pub struct Worker {
    name: &'static str,
    index: usize,
    epoch: Instant,
    beats: AtomicU64,
    last_beat: AtomicU64,
    busy_since: AtomicU64,
    turn: watch::Receiver<usize>,
}

impl Worker {
    /// Worker `index`, which has the turn while `turn` is `index`. Counts as alive from now on.
    pub fn new(name: &'static str, index: usize, turn: watch::Receiver<usize>) -> Self {
        Self {
            name,
            index,
            epoch: Instant::now(),
            beats: AtomicU64::new(0),
            last_beat: AtomicU64::new(1),
            busy_since: AtomicU64::new(0),
            turn,
        }
    }

    /// The name of its thread.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether this worker has the turn to accept.
    pub fn has_turn(&self) -> bool {
        *self.turn.borrow() == self.index
    }

    /// A receiver that changes whenever the turn does.
    pub fn turns(&self) -> watch::Receiver<usize> {
        self.turn.clone()
    }

    /// Records that its thread is alive. The thread must call this every [`BEAT`].
    pub fn beat(&self) {
        self.last_beat
            .store(self.stamp(Instant::now()), Ordering::Relaxed);
        let _ = self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that its thread has ended: it makes no more progress, and need not.
    pub fn end(&self) {
        self.last_beat.store(0, Ordering::Relaxed);
    }

    /// Whether its thread has ended.
    pub fn has_ended(&self) -> bool {
        self.last_beat.load(Ordering::Relaxed) == 0
    }

    /// The number of beats so far.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// The time since the last beat; none if its thread has ended.
    pub fn silent_for(&self, now: Instant) -> Duration {
        self.since(&self.last_beat, now).unwrap_or_default()
    }

    /// Whether another worker should have the turn instead.
    pub fn is_blocked(&self, now: Instant) -> bool {
        self.since(&self.busy_since, now)
            .is_some_and(|busy| busy > BUSY)
            || self.silent_for(now) > SILENT
    }

    /// Records that its thread begins a task at `now`.
    pub(super) fn busy(&self, now: Instant) {
        self.busy_since.store(self.stamp(now), Ordering::Relaxed);
    }

    /// Records that its thread has ended the task.
    pub(super) fn idle(&self) {
        self.busy_since.store(0, Ordering::Relaxed);
    }

    fn stamp(&self, now: Instant) -> u64 {
        let millis = now.saturating_duration_since(self.epoch).as_millis();
        u64::try_from(millis).unwrap_or(u64::MAX - 1) + 1
    }

    fn since(&self, stamp: &AtomicU64, now: Instant) -> Option<Duration> {
        match stamp.load(Ordering::Relaxed) {
            0 => None,
            stamp => Some(Duration::from_millis(self.stamp(now).saturating_sub(stamp))),
        }
    }
}

/// Which worker has the turn next, given which has it `now` and which are blocked. The turn changes only from a blocked
/// worker to one that is not.
pub fn next_turn(now: usize, blocked: &[bool]) -> usize {
    if blocked.get(now) != Some(&true) {
        return now;
    }
    blocked.iter().position(|blocked| !blocked).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_turn_goes_to_one_that_is_not_held_up() {
        assert_eq!(next_turn(0, &[false, false]), 0);
        assert_eq!(next_turn(0, &[true, false]), 1);
        assert_eq!(
            next_turn(1, &[false, false]),
            1,
            "the turn does not go back by itself"
        );
        assert_eq!(next_turn(1, &[false, true]), 0);
        assert_eq!(next_turn(1, &[true, true]), 1, "all are held up");
    }

    #[test]
    fn a_worker_is_held_up_by_a_long_task_or_by_missing_beats() {
        let (_turns, turn) = watch::channel(0);
        let worker = Worker::new("handler", 0, turn);
        let now = Instant::now();
        assert!(!worker.is_blocked(now));
        worker.busy(now);
        assert!(!worker.is_blocked(now + BUSY));
        assert!(worker.is_blocked(now + BUSY + Duration::from_millis(2)));
        worker.idle();
        assert!(!worker.is_blocked(now + BUSY + Duration::from_millis(2)));
        assert!(worker.is_blocked(now + SILENT + Duration::from_millis(5)));
        worker.beat();
        assert!(!worker.is_blocked(Instant::now()));
        assert_eq!(worker.beats(), 1);
    }

    #[test]
    fn a_worker_has_the_turn_once_it_is_given() {
        let (turns, turn) = watch::channel(0);
        let worker = Worker::new("standby", 1, turn);
        assert!(!worker.has_turn());
        turns.send(1).expect("a worker");
        assert!(worker.has_turn());
    }
}
