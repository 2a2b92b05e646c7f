//! A thousand pods of which ten are replaced per second: no resource is leaked, and no verdict is wrong.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::light_pod::LightPod;
use super::schedule::Schedule;
use super::{Bench, GRACE, endpoints};
use crate::process;
use testbed::bpf::Map;
use testbed::command;
use testbed::daemon::Daemon;
use testbed::interrupt;
use testbed::rules::RuleSet;
use testbed::wait;

/// The kubelet's default probe period.
const PERIOD: Duration = Duration::from_secs(10);
/// Probe period of new pods, which are observed closely.
const NEW_PERIOD: Duration = Duration::from_secs(1);
/// Time between two replacements.
const PACE: Duration = Duration::from_millis(100);
const SETTLED: Duration = Duration::from_secs(30);

/// Resources of the daemon and the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    endpoints: usize,
    nsids: usize,
    kib: u64,
}

impl Holdings {
    fn of(daemon: &Daemon, endpoints: &Map) -> Result<Self> {
        let nsids = command::run("ip", &["netns", "list-id"], "")?;
        Ok(Self {
            descriptors: daemon.descriptors_and_threads()?.0,
            endpoints: endpoints.entries()?,
            nsids: String::from_utf8_lossy(&nsids.stdout).lines().count(),
            kib: process::memory(daemon.pid())?.anonymous,
        })
    }

    /// Reads them once they have stopped changing, or after a time limit.
    fn settled(daemon: &Daemon, endpoints: &Map) -> Result<Self> {
        let mut last = Self::of(daemon, endpoints)?;
        let mut same = 0;
        let _or_late = wait::until("what is held to settle", SETTLED, || {
            std::thread::park_timeout(Duration::from_millis(100));
            let now = Self::of(daemon, endpoints).ok()?;
            same = if (now.descriptors, now.nsids) == (last.descriptors, last.nsids) {
                same + 1
            } else {
                0
            };
            last = now;
            (same >= 20).then_some(())
        });
        interrupt::check()?;
        Ok(last)
    }
}

pub(super) fn run(bench: &mut Bench, pods: Vec<LightPod>, mut daemon: Daemon) -> Result<()> {
    let (count, time) = if bench.quick {
        (100, Duration::from_secs(15))
    } else {
        (1_000, Duration::from_secs(300))
    };
    let map = endpoints(&daemon)?;
    let schedule = Schedule::start(&bench.kubelet);
    let mut standing = VecDeque::with_capacity(count);
    let join = |pod: LightPod, period: Duration, delay: Duration| -> Result<(u64, LightPod)> {
        let id = schedule.join(pod.probe()?, pod.status, period, delay);
        Ok((id, pod))
    };
    for pod in pods {
        standing.push_back(join(pod, PERIOD, Duration::ZERO)?);
    }
    while standing.len() < count {
        interrupt::check()?;
        standing.push_back(join(
            bench.light.run(RuleSet::IstioNft)?,
            PERIOD,
            PERIOD / 10,
        )?);
    }
    wait::until("all endpoints to stand", SETTLED, || {
        (map.entries().ok()? >= count).then_some(())
    })?;
    // Waits until every pod has been probed once, so that the probes' resources are allocated.
    wait::pass(PERIOD)?;
    let before = Holdings::settled(&daemon, &map)?;

    let begun = Instant::now();
    let mut replaced = 0;
    // A leak grows in the second half as much as in the first.
    let mut halfway = None;
    while begun.elapsed() < time {
        if halfway.is_none() && begun.elapsed() > time / 2 {
            halfway = Some(process::memory(daemon.pid())?.anonymous);
        }
        interrupt::check()?;
        let mut new = bench.light.bind(RuleSet::IstioNft)?;
        new.start_sandbox()?;
        let (id, old) = standing.pop_front().context("no pod is left")?;
        schedule.leave(id);
        old.end()?;
        bench.light.start_app(&mut new)?;
        standing.push_back(join(new, NEW_PERIOD, Duration::ZERO)?);
        if let Some((_, new)) = standing.back_mut() {
            new.pod.report_running()?;
        }
        replaced += 1;
        let next = PACE * replaced;
        wait::pass(next.saturating_sub(begun.elapsed()))?;
    }
    let rate = f64::from(replaced) / begun.elapsed().as_secs_f64();
    // Stops probing first, because a thousand probes a second would be counted too.
    let tally = schedule.stop()?;
    let after = Holdings::settled(&daemon, &map)?;
    let what = format!(
        "{count} pods, {rate:.1} replaced a second for {} s",
        time.as_secs()
    );
    bench.verdicts(&what, &tally);
    let mut held = |name: &str, before: u64, after: u64, unit: &str| {
        let measured = format!("{before}{unit} before, {after}{unit} after");
        bench.row(&format!("{what}: {name}"), measured, "as before");
    };
    held(
        "descriptors",
        before.descriptors as u64,
        after.descriptors as u64,
        "",
    );
    held(
        "endpoints",
        before.endpoints as u64,
        after.endpoints as u64,
        "",
    );
    held("namespace ids", before.nsids as u64, after.nsids as u64, "");
    held("daemon's memory", before.kib, after.kib, " KiB");
    if let Some(kib) = halfway {
        bench.row(
            &format!("{what}: daemon's memory halfway"),
            format!("{kib} KiB"),
            "",
        );
    }
    for (_, pod) in standing {
        pod.end()?;
    }
    wait::until("all endpoints to go", SETTLED, || {
        (map.entries().ok()? == 0).then_some(())
    })?;
    let end = Holdings::settled(&daemon, &map)?;
    bench.row(
        "all pods gone",
        format!(
            "{} descriptors, {} endpoints, {} KiB",
            end.descriptors, end.endpoints, end.kib
        ),
        "",
    );
    let _status = daemon.stop(GRACE)?;
    Ok(())
}
