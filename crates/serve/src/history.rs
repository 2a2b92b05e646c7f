//! The bounded history of a check: runs of equal verdicts, and how long the app took to answer in the last hour.
//!
//! Updated at each verdict, under the lock that stores the verdict. A verdict like the one before changes numbers in place
//! and allocates nothing. At most 4 KiB for each check.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use model::result::Run;
use probe::verdict::{Outcome, Verdict};

/// Maximum number of runs that are kept.
pub const RUNS: usize = 64;
/// Minimum number of answers for a percentile.
const LEAST_ANSWERS: u32 = 20;

/// The history of one check.
#[derive(Debug, Default)]
pub struct History {
    runs: VecDeque<Run>,
    /// Whether the next verdict begins a new run even if it is equal to the last one.
    is_ended: bool,
    latencies: Option<Box<Latencies>>,
}

impl History {
    /// Adds a verdict at `now`, in milliseconds since 1970. Returns whether it differs from the previous one.
    pub fn add(&mut self, now: u64, outcome: Outcome, verdict: &Verdict) -> bool {
        let latency_us = verdict.latency.map_or(0, micros);
        let is_ended = std::mem::take(&mut self.is_ended);
        let is_same = |run: &&mut Run| {
            !is_ended
                && (run.outcome, run.reason, run.status)
                    == (outcome, verdict.reason, verdict.status)
        };
        let changed = match self.runs.back_mut().filter(is_same) {
            Some(run) => {
                run.until_ms = now;
                run.count = run.count.saturating_add(1);
                run.latency_us = latency_us;
                false
            }
            None => {
                let p99_us = self.p99(now).map_or(0, micros);
                self.push(Run {
                    since_ms: now,
                    until_ms: now,
                    count: 1,
                    outcome,
                    reason: verdict.reason,
                    status: verdict.status,
                    latency_us,
                    p99_us,
                });
                true
            }
        };
        if outcome == Outcome::Success && latency_us > 0 {
            let latencies = self.latencies.get_or_insert_default();
            latencies.add(now, latency_us);
        }
        changed
    }

    /// Makes the next verdict begin a new run.
    pub fn end_run(&mut self) {
        self.is_ended = true;
    }

    /// Adds the runs of an earlier daemon before those of this one.
    pub fn restore(&mut self, earlier: &[Run]) {
        let room = RUNS.saturating_sub(self.runs.len());
        for run in earlier.iter().rev().take(room) {
            self.runs.push_front(*run);
        }
    }

    /// All runs, oldest first.
    pub fn runs(&self) -> &VecDeque<Run> {
        &self.runs
    }

    /// Of the app's answers in the hour before `now`, 99 % took no longer than this.
    pub fn p99(&self, now: u64) -> Option<Duration> {
        self.latencies.as_ref()?.p99(now)
    }

    fn push(&mut self, run: Run) {
        if self.runs.len() >= RUNS {
            let _ = self.runs.pop_front();
        }
        self.runs.push_back(run);
    }
}

/// Now, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// Parts of an hour.
const SLOTS: usize = 4;
/// Duration of a part, in milliseconds.
const SLOT_MS: u64 = 3_600_000 / SLOTS as u64;
/// Steps from one power of two to the next: a bucket is at most an eighth wide.
const STEPS: usize = 8;
/// The first bucket contains latencies below 2 to the power of this, in microseconds.
const FIRST: u32 = 6;
/// Covers 67 s; the last bucket contains all longer latencies.
const BUCKETS: usize = 1 + 20 * STEPS;

/// Latencies of the last hour, counted in buckets.
#[derive(Debug)]
struct Latencies {
    /// The time that each slot covers, as a number of parts.
    parts: [u64; SLOTS],
    counts: [[u16; BUCKETS]; SLOTS],
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            parts: [0; SLOTS],
            counts: [[0; BUCKETS]; SLOTS],
        }
    }
}

impl Latencies {
    fn add(&mut self, now: u64, latency_us: u32) {
        let part = now / SLOT_MS;
        let slot = (part % SLOTS as u64) as usize;
        if self.parts[slot] != part {
            self.parts[slot] = part;
            self.counts[slot] = [0; BUCKETS];
        }
        let count = &mut self.counts[slot][bucket(latency_us)];
        *count = count.saturating_add(1);
    }

    fn p99(&self, now: u64) -> Option<Duration> {
        let part = now / SLOT_MS;
        let recent = self
            .parts
            .iter()
            .zip(&self.counts)
            .filter(|(counted, _)| part.saturating_sub(**counted) < SLOTS as u64);
        let mut sums = [0_u32; BUCKETS];
        for (_, counts) in recent {
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += u32::from(*count);
            }
        }
        let all: u32 = sums.iter().sum();
        if all < LEAST_ANSWERS {
            return None;
        }
        let mut seen = 0;
        let at = sums.iter().position(|count| {
            seen += count;
            seen * 100 >= all * 99
        })?;
        Some(Duration::from_micros(upper_bound(at)))
    }
}

/// The bucket of a latency.
fn bucket(us: u32) -> usize {
    if us < 1 << FIRST {
        return 0;
    }
    let power = us.ilog2();
    let step = ((us - (1 << power)) as usize * STEPS) >> power;
    (1 + (power - FIRST) as usize * STEPS + step).min(BUCKETS - 1)
}

/// The lowest latency above those of a bucket, in microseconds.
fn upper_bound(bucket: usize) -> u64 {
    match bucket.checked_sub(1) {
        None => 1 << FIRST,
        Some(rest) => {
            let base = 1_u64 << (FIRST as usize + rest / STEPS);
            base + base * (rest % STEPS + 1) as u64 / STEPS as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use probe::verdict::Reason;

    fn verdict(reason: Reason, status: u16, millis: u64) -> Verdict {
        Verdict {
            reason,
            status,
            detail: String::new(),
            latency: Some(Duration::from_millis(millis)),
        }
    }

    #[test]
    fn equal_verdicts_are_one_run_and_a_change_begins_another() {
        let mut history = History::default();
        let healthy = verdict(Reason::Healthy, 200, 3);
        let failed = verdict(Reason::TimedOut, 504, 1000);
        assert!(history.add(1_000, Outcome::Success, &healthy));
        assert!(!history.add(2_000, Outcome::Success, &healthy));
        assert!(history.add(3_000, Outcome::Failure, &failed));
        let runs: Vec<_> = history
            .runs()
            .iter()
            .map(|run| (run.since_ms, run.until_ms, run.count, run.reason))
            .collect();
        assert_eq!(
            runs,
            [
                (1_000, 2_000, 2, Reason::Healthy),
                (3_000, 3_000, 1, Reason::TimedOut)
            ]
        );
    }

    #[test]
    fn a_run_ends_with_a_restart() {
        let mut history = History::default();
        let failed = verdict(Reason::TimedOut, 504, 1000);
        assert!(history.add(1_000, Outcome::Failure, &failed));
        history.end_run();
        assert!(history.add(2_000, Outcome::Failure, &failed));
        assert!(!history.add(3_000, Outcome::Failure, &failed));
    }

    #[test]
    fn a_history_has_at_most_4_kib() {
        let mut history = History::default();
        for now in 0..1_000 {
            let (outcome, verdict) = match now % 2 {
                0 => (Outcome::Success, verdict(Reason::Healthy, 200, 3)),
                _ => (Outcome::Failure, verdict(Reason::Refused, 500, 1)),
            };
            let _ = history.add(now, outcome, &verdict);
        }
        assert_eq!(history.runs().len(), RUNS);
        assert_eq!(history.runs().back().map(|run| run.since_ms), Some(999));
        let bytes = size_of::<History>()
            + size_of::<Latencies>()
            + history.runs.capacity() * size_of::<Run>();
        assert!(bytes <= 4096, "{bytes} bytes");
    }

    #[test]
    fn a_run_has_the_p99_of_the_hour_before_it() {
        let mut history = History::default();
        let hour = 3_600_000;
        let start = 100 * hour;
        // Two hours ago the app was slower.
        for second in 0..100 {
            let slow = verdict(Reason::Healthy, 200, 5_000);
            let _ = history.add(start - 2 * hour + second, Outcome::Success, &slow);
        }
        for second in 0..100 {
            let millis = if second < 98 { 2 } else { 940 };
            let now = start + second * 10_000;
            let _ = history.add(
                now,
                Outcome::Success,
                &verdict(Reason::Healthy, 200, millis),
            );
        }
        let end = start + 1_000_000;
        let _ = history.add(
            end,
            Outcome::Failure,
            &verdict(Reason::TimedOut, 504, 1_000),
        );
        let p99 = history.runs().back().expect("a run").p99_us;
        assert!((940_000..1_060_000).contains(&p99), "{p99}");
        assert_eq!(history.p99(end + 2 * hour), None, "no answer in that hour");
    }

    #[test]
    fn few_answers_have_no_percentile() {
        let mut history = History::default();
        for now in 0..u64::from(LEAST_ANSWERS) - 1 {
            let _ = history.add(now, Outcome::Success, &verdict(Reason::Healthy, 200, 2));
        }
        assert_eq!(history.p99(1_000), None);
    }

    #[test]
    fn each_latency_is_in_a_bucket_that_is_at_most_an_eighth_wide() {
        for us in [0, 1, 63, 64, 71, 72, 999, 1_000, 940_000, 60_000_000] {
            let upper = upper_bound(bucket(us));
            assert!(upper > u64::from(us), "{us} {upper}");
            assert!(upper <= 64.max(u64::from(us) * 9 / 8 + 1), "{us} {upper}");
        }
        assert_eq!(bucket(u32::MAX), BUCKETS - 1);
    }

    #[test]
    fn runs_of_an_earlier_daemon_come_first_and_the_oldest_are_dropped() {
        let run = |since_ms| Run {
            since_ms,
            until_ms: since_ms,
            count: 1,
            outcome: Outcome::Success,
            reason: Reason::Healthy,
            status: 200,
            latency_us: 0,
            p99_us: 0,
        };
        let mut history = History::default();
        let _ = history.add(1_000, Outcome::Success, &verdict(Reason::Healthy, 200, 2));
        let earlier: Vec<_> = (0..RUNS as u64).map(run).collect();
        history.restore(&earlier);
        let since: Vec<_> = history.runs().iter().map(|run| run.since_ms).collect();
        assert_eq!(since.len(), RUNS);
        assert_eq!((since[0], since[RUNS - 1]), (1, 1_000));
    }
}
