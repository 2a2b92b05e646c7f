//! A daemon that starts on a node with many pods, and one that takes over from another during probes.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::light_pod::LightPod;
use super::schedule::Schedule;
use super::{Bench, GRACE, endpoints, ms};
use crate::daemon::Daemon;
use crate::rules::RuleSet;
use crate::{interrupt, wait};

const PERIOD: Duration = Duration::from_secs(1);
/// How long probes run before, between and after the changes.
const WHILE: Duration = Duration::from_secs(4);
const SERVED: Duration = Duration::from_secs(60);

/// The remaining pods, and the daemon that serves them.
pub(super) fn run(bench: &mut Bench) -> Result<(Vec<LightPod>, Daemon)> {
    let count = if bench.quick { 50 } else { 250 };
    let mut pods = Vec::with_capacity(count);
    for _ in 0..count {
        interrupt::check()?;
        pods.push(bench.light.run(RuleSet::IstioNft)?);
    }
    let begun = Instant::now();
    let mut old = bench.spec("old").spawn(&bench.run)?;
    old.wait_ready()?;
    let ready = begun.elapsed();
    let map = endpoints(&old)?;
    let addresses: Vec<_> = pods.iter().map(LightPod::address).collect::<Result<_>>()?;
    wait::until("all pods to be served", SERVED, || {
        let stand = |address| map.has(address).unwrap_or_default();
        addresses.iter().copied().all(stand).then_some(())
    })?;
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

    let schedule = Schedule::start(&bench.kubelet);
    for (index, pod) in pods.iter().enumerate() {
        // Spread over the period, as on a real node.
        let delay = PERIOD * u32::try_from(index)? / u32::try_from(count)?;
        let _id = schedule.join(pod.probe()?, pod.status, PERIOD, delay);
    }
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
