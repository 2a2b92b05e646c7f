//! A thread that serves connections: whether it is alive, and whether it is its turn to accept.
//!
//! Several threads can serve, one of them accepts. A check that makes the kernel work for a long time (see
//! [`super::cost`]) holds up its thread, and whatever else that thread serves; then the next thread accepts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// How often a worker says that it is alive.
pub const BEAT: Duration = Duration::from_millis(100);
/// A worker that has been busy with one thing for longer than this is held up,
const BUSY: Duration = Duration::from_millis(75);
/// and so is one that has not said that it is alive for this long.
const SILENT: Duration = Duration::from_millis(350);

/// One thread, as others see it. Times are milliseconds since `epoch`, plus one; 0 is never.
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
    /// The worker number `index`, whose turn it is when `turn` says so. Counts as alive from now on.
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

    /// Name of its thread.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it is this worker's turn to accept.
    pub fn has_turn(&self) -> bool {
        *self.turn.borrow() == self.index
    }

    /// Changes whenever the turn does.
    pub fn turns(&self) -> watch::Receiver<usize> {
        self.turn.clone()
    }

    /// To be called by its thread every [`BEAT`].
    pub fn beat(&self) {
        self.last_beat
            .store(self.stamp(Instant::now()), Ordering::Relaxed);
        let _ = self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it has said that it is alive.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// How long ago it last said that it is alive.
    pub fn silent_for(&self, now: Instant) -> Duration {
        self.since(&self.last_beat, now).unwrap_or_default()
    }

    /// Whether others should take over.
    pub fn is_held_up(&self, now: Instant) -> bool {
        self.since(&self.busy_since, now)
            .is_some_and(|busy| busy > BUSY)
            || self.silent_for(now) > SILENT
    }

    /// Its thread begins to work on something, at `now`.
    pub(super) fn busy(&self, now: Instant) {
        self.busy_since.store(self.stamp(now), Ordering::Relaxed);
    }

    /// Its thread is done with it.
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

/// Whose turn it is next, given whose it is and who is held up: nobody else's while nobody else could do better.
pub fn next_turn(now: usize, held_up: &[bool]) -> usize {
    if held_up.get(now) != Some(&true) {
        return now;
    }
    held_up.iter().position(|held_up| !held_up).unwrap_or(now)
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
            "it does not go back by itself"
        );
        assert_eq!(next_turn(1, &[false, true]), 0);
        assert_eq!(next_turn(1, &[true, true]), 1, "nobody could do better");
    }

    #[test]
    fn a_worker_is_held_up_by_long_work_or_when_it_says_nothing() {
        let (_turns, turn) = watch::channel(0);
        let worker = Worker::new("handler", 0, turn);
        let now = Instant::now();
        assert!(!worker.is_held_up(now));
        worker.busy(now);
        assert!(!worker.is_held_up(now + BUSY));
        assert!(worker.is_held_up(now + BUSY + Duration::from_millis(2)));
        worker.idle();
        assert!(!worker.is_held_up(now + BUSY + Duration::from_millis(2)));
        assert!(worker.is_held_up(now + SILENT + Duration::from_millis(5)));
        worker.beat();
        assert!(!worker.is_held_up(Instant::now()));
        assert_eq!(worker.beats(), 1);
    }

    #[test]
    fn a_worker_knows_its_turn() {
        let (turns, turn) = watch::channel(0);
        let worker = Worker::new("standby", 1, turn);
        assert!(!worker.has_turn());
        turns.send(1).expect("a worker");
        assert!(worker.has_turn());
    }
}
