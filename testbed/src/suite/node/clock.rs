//! The system clock jumps, as when a node's time is corrected: no timer of the daemon depends on it.

use std::time::Instant;

use anyhow::{Result, ensure};
use api_server_double::Cut;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use super::env::Env;
use crate::suite::cases::Cases;
use crate::suite::sample_pod;

const HOUR: i64 = 3600;
/// How far the clock jumps: within the validity of the API server's certificate.
const JUMPS: [i64; 3] = [HOUR, -2 * 24 * HOUR, 30 * 24 * HOUR];

pub fn run(cases: &mut Cases, env: &Env) {
    cases.case_in_a_guest("clock-jumps", "it sets the machine's clock", || jumps(env));
}

/// While it jumps, existing pods are served, new ones are found, and broken watches are restored.
fn jumps(env: &Env) -> Result<()> {
    let old = env.pod(sample_pod::pod("from-before"))?;
    for (index, seconds) in JUMPS.into_iter().enumerate() {
        let clock = Clock::moved(seconds)?;
        env.check_verdicts(&old)?;
        env.node.api.order(|server| server.cut("pods", Cut::End))?;
        let new = env.pod(sample_pod::pod(&format!("after-jump-{index}")))?;
        env.check_verdicts(&new)?;
        let (status, body) = env.daemon.get("/readyz")?;
        ensure!(status == 200, "/readyz answers {status}: {body}");
        drop(clock);
        env.check_verdicts(&new)?;
    }
    env.check_verdicts(&old)
}

/// A changed wall clock; corrected on drop.
struct Clock {
    before: TimeSpec,
    since: Instant,
}

impl Clock {
    fn moved(seconds: i64) -> Result<Self> {
        let before = clock_gettime(ClockId::CLOCK_REALTIME)?;
        let clock = Self {
            before,
            since: Instant::now(),
        };
        let then = TimeSpec::new(before.tv_sec() + seconds, before.tv_nsec());
        clock_settime(ClockId::CLOCK_REALTIME, then)?;
        Ok(clock)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let now = self.before + TimeSpec::from_duration(self.since.elapsed());
        if let Err(error) = clock_settime(ClockId::CLOCK_REALTIME, now) {
            eprintln!("testbed: the clock is wrong and cannot be set: {error}");
        }
    }
}
