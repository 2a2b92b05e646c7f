//! Measures the processor time that each pod's checks cost, and chooses the thread that serves them.
//!
//! A pod controls how much work its probes cause: by redirects, TLS and HTTP/2 frames and, where it may configure its
//! network, by netfilter rules that cost the dialling thread a tenth of a second for each packet. Other pods' probes
//! must not wait for that.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::time::{Duration, Instant};

use nix::sys::resource::{Usage, UsageWho, getrusage};
use parking_lot::Mutex;

use super::worker::Worker;

/// What a pod's checks may cost on the thread that accepts connections. A probe costs about 0.15 ms.
const PROMPT: Rate = Rate {
    per_second: Duration::from_millis(50),
    burst: Duration::from_millis(100),
};
/// What they may cost on any thread.
const TOTAL: Rate = Rate {
    per_second: Duration::from_millis(250),
    burst: Duration::from_millis(2_500),
};
/// Work for one pod that takes a thread longer than this at a time is unusual.
const UNUSUAL: Duration = Duration::from_millis(20);
/// How long a pod whose checks cost more than that is not served.
pub const EXCLUDED_FOR: Duration = Duration::from_secs(60);
/// Up to this, elapsed time counts as processor time. Above it, involuntary context switches are taken into account.
const SHORT: Duration = Duration::from_micros(200);

/// How a pod's checks are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// On the thread that accepts connections.
    Prompt,
    /// On a thread of lower priority, shared by all costly pods.
    Slow,
    /// Not at all, for [`EXCLUDED_FOR`].
    Excluded,
}

/// Processor time that one pod's checks have cost recently.
#[derive(Debug)]
pub struct PodCost(Mutex<CostState>);

#[derive(Debug)]
struct CostState {
    prompt: Bucket,
    total: Bucket,
    excluded_until: Option<Instant>,
    /// Number of threads that work for the pod now.
    running: u32,
    /// When the first of them began.
    running_since: Instant,
}

#[derive(Debug)]
struct Rate {
    per_second: Duration,
    burst: Duration,
}

/// A leaky bucket of processor time.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    level: Duration,
    at: Instant,
}

/// Records that a thread works for a pod.
struct Running<'a>(&'a PodCost);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.0.lock().running -= 1;
    }
}

/// A running measurement.
struct Meter {
    begun: Instant,
    before: Option<Usage>,
}

// === impl PodCost ===

impl PodCost {
    /// A pod that has cost nothing yet.
    pub fn new(now: Instant) -> Self {
        let bucket = |rate| Bucket {
            rate,
            level: Duration::ZERO,
            at: now,
        };
        Self(Mutex::new(CostState {
            prompt: bucket(PROMPT),
            total: bucket(TOTAL),
            excluded_until: None,
            running: 0,
            running_since: now,
        }))
    }

    /// How to serve the pod's next check.
    pub fn lane(&self, now: Instant) -> Lane {
        let mut state = self.0.lock();
        if state.excluded_until.is_some_and(|until| now < until) {
            return Lane::Excluded;
        }
        // What runs now on another thread has not been counted yet.
        let runs_long =
            state.running > 0 && now.saturating_duration_since(state.running_since) > UNUSUAL;
        match runs_long || state.prompt.overflows(now) {
            true => Lane::Slow,
            false => Lane::Prompt,
        }
    }

    /// Notes that a thread works for the pod from `now` on, until the returned guard is dropped.
    fn run(&self, now: Instant) -> Running<'_> {
        let mut state = self.0.lock();
        if state.running == 0 {
            state.running_since = now;
        }
        state.running += 1;
        Running(self)
    }

    /// Records `cost` of processor time. Returns true when this excludes the pod.
    pub(super) fn spend(&self, cost: Duration, now: Instant) -> bool {
        let mut state = self.0.lock();
        state.prompt.add(cost, now);
        state.total.add(cost, now);
        let was_excluded = state.excluded_until.is_some_and(|until| now < until);
        if was_excluded || !state.total.overflows(now) {
            return false;
        }
        state.total.level = Duration::ZERO;
        state.excluded_until = Some(now + EXCLUDED_FOR);
        true
    }
}

// === impl Bucket ===

impl Bucket {
    fn leak(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = self
            .level
            .saturating_sub(self.rate.per_second.mul_f64(elapsed));
        self.at = now;
    }

    fn add(&mut self, cost: Duration, now: Instant) {
        self.leak(now);
        self.level += cost;
    }

    fn overflows(&mut self, now: Instant) -> bool {
        self.leak(now);
        self.level > self.rate.burst
    }
}

// === impl Meter ===

impl Meter {
    fn start(begun: Instant) -> Self {
        Self {
            begun,
            before: getrusage(UsageWho::RUSAGE_THREAD).ok(),
        }
    }

    /// The cost so far. Includes the time in which the kernel handled packets for the thread, which kernels with
    /// CONFIG_IRQ_TIME_ACCOUNTING do not count as the thread's. So the cost is the elapsed time, unless the thread
    /// was preempted: then it is the thread's processor time.
    fn stop(self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.begun);
        let usage = (passed > SHORT)
            .then(|| self.before.zip(getrusage(UsageWho::RUSAGE_THREAD).ok()))
            .flatten();
        let Some((before, after)) = usage else {
            return passed;
        };
        if before.involuntary_context_switches() == after.involuntary_context_switches() {
            return passed;
        }
        processor_time(&after).saturating_sub(processor_time(&before))
    }
}

fn processor_time(usage: &Usage) -> Duration {
    [usage.user_time(), usage.system_time()]
        .into_iter()
        .map(|time| {
            let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
            Duration::from_micros(u64::try_from(micros).unwrap_or_default())
        })
        .sum()
}

/// Runs `work` for a pod on the thread of `worker`, adds its processor time to `cost`, and marks the worker as busy while
/// it runs. Calls `excluded` when the pod has cost too much.
pub(super) async fn metered<T>(
    mut work: Pin<&mut impl Future<Output = T>>,
    cost: &PodCost,
    worker: &Worker,
    excluded: impl Fn(),
) -> T {
    poll_fn(|context| {
        let begun = Instant::now();
        let meter = Meter::start(begun);
        let running = cost.run(begun);
        worker.busy(begun);
        let polled = work.as_mut().poll(context);
        worker.idle();
        drop(running);
        if cost.spend(meter.stop(Instant::now()), begun) {
            excluded();
        }
        polled
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_hundred_usual_probes_a_second_stay_in_the_prompt_lane() {
        let begun = Instant::now();
        let cost = PodCost::new(begun);
        for n in 0..10_000_u32 {
            let now = begun + n * 10 * MS;
            assert_eq!(cost.lane(now), Lane::Prompt);
            assert!(!cost.spend(MS * 3 / 10, now));
        }
    }

    #[test]
    fn a_costly_check_moves_its_pod_to_the_slow_lane_until_its_cost_has_leaked_away() {
        let begun = Instant::now();
        let cost = PodCost::new(begun);
        assert!(!cost.spend(300 * MS, begun));
        assert_eq!(cost.lane(begun), Lane::Slow);
        assert_eq!(cost.lane(begun + 3_900 * MS), Lane::Slow);
        assert_eq!(cost.lane(begun + 4_100 * MS), Lane::Prompt);
    }

    #[test]
    fn a_pod_that_stays_costly_is_excluded_for_a_while() {
        let begun = Instant::now();
        let cost = PodCost::new(begun);
        let mut excluded = None;
        for n in 0..60 {
            let now = begun + n * 100 * MS;
            if cost.spend(80 * MS, now) {
                excluded = Some(now);
                break;
            }
        }
        let excluded = excluded.expect("80 % of a processor is too much");
        assert!(
            excluded - begun > 2_000 * MS,
            "after {:?}",
            excluded - begun
        );
        assert_eq!(cost.lane(excluded), Lane::Excluded);
        assert!(!cost.spend(80 * MS, excluded + MS), "reported once");
        assert_ne!(cost.lane(excluded + EXCLUDED_FOR), Lane::Excluded);
    }

    #[test]
    fn a_meter_counts_work() {
        let meter = Meter::start(Instant::now());
        let mut sum = 0_u64;
        let begun = Instant::now();
        while begun.elapsed() < 5 * MS {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(meter.stop(Instant::now()) > MS);
        let meter = Meter::start(Instant::now());
        assert!(meter.stop(Instant::now()) < MS);
    }

    #[test]
    fn a_pod_that_holds_up_one_thread_does_not_hold_up_another() {
        let begun = Instant::now();
        let cost = PodCost::new(begun);
        let running = cost.run(begun);
        assert_eq!(cost.lane(begun + UNUSUAL), Lane::Prompt);
        assert_eq!(cost.lane(begun + UNUSUAL + MS), Lane::Slow);
        let second = cost.run(begun + 30 * MS);
        drop(running);
        assert_eq!(cost.lane(begun + 31 * MS), Lane::Slow);
        drop(second);
        assert_eq!(cost.lane(begun + 31 * MS), Lane::Prompt);
    }
}
