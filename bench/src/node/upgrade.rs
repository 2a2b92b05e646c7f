//! A daemon that starts on a node with many pods, and one that takes over from another during probes.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::light_pod::LightPod;
use super::{Bench, GRACE, all_served, ms};
use testbed::daemon::Daemon;
use testbed::wait;

/// How long probes run before, between and after the changes.
const WHILE: Duration = Duration::from_secs(4);

/// The remaining pods, and the daemon that serves them.
pub(super) fn run(bench: &mut Bench) -> Result<(Vec<LightPod>, Daemon)> {
    let count = if bench.quick { 50 } else { 250 };
    let pods = bench.pods(count)?;
    let begun = Instant::now();
    let mut old = bench.spec("old").spawn(&bench.run)?;
    old.wait_ready()?;
    let ready = begun.elapsed();
    all_served(&old, &pods)?;
    let served = begun.elapsed();
    bench.row(
        &format!("daemon's start, {count} pods: ready"),
        ms(ready),
        "",
    );
    bench.row(
        &format!("daemon's start, {count} pods: all served"),
        ms(served),
        "within 2 s",
    );

    let schedule = bench.probed(&pods, 1)?;
    wait::pass(WHILE)?;
    let new = bench.spec("new").start(&bench.run)?;
    wait::pass(WHILE)?;
    let _status = old.stop(GRACE)?;
    wait::pass(WHILE)?;
    let tally = schedule.stop()?;
    bench.verdicts(
        &format!("rolling upgrade, {count} pods probed each second"),
        &tally,
    );
    Ok((pods, new))
}
