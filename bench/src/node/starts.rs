//! Starting pods: whether the endpoint exists before the app runs, and whether the first probes are correct.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::light_pod::{Light, LightPod};
use super::schedule::{Schedule, Tally};
use super::{Bench, GRACE, endpoints, ms};
use testbed::bpf::Map;
use testbed::interrupt;
use testbed::node::Order;
use testbed::rules::RuleSet;
use testbed::wait;

/// How many pods the runtime starts concurrently.
const WORKERS: usize = 4;
/// Time from the sandbox to the app: a fifth of what a runtime takes (see `light_pod.rs`).
const CONTAINER_IS_MADE: Duration = Duration::from_millis(20);
/// How often the kernel's map is checked for an endpoint.
const LOOK: Duration = Duration::from_micros(200);
/// How many pods start at once, and how long they are probed afterwards.
const AT_ONCE: usize = 100;
const PROBED: Duration = Duration::from_secs(5);
const PERIOD: Duration = Duration::from_secs(1);

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let mut daemon = bench.spec("starts").start(&bench.run)?;
    let count = if bench.quick { 100 } else { 1_000 };
    for (name, order) in [
        ("network first", Order::NetworkFirst),
        ("process first", Order::ProcessFirst),
    ] {
        one_by_one(bench, &endpoints(&daemon)?, name, order, count / 2)?;
    }
    for (name, rules) in [("no mesh", RuleSet::None), ("STRICT", RuleSet::IstioNft)] {
        let (took, tally) = at_once(bench, rules)?;
        let what = format!("{AT_ONCE} pods at once, {name}");
        bench.row(&format!("{what}: all started after"), ms(took), "");
        if rules == RuleSet::None {
            let measured = format!("{} of {} probes", tally.wrong, tally.made);
            bench.row(&format!("{what}: failed probes"), measured, "(to compare)");
        } else {
            bench.verdicts(&what, &tally);
        }
    }
    let _status = daemon.stop(GRACE)?;
    Ok(())
}

/// Starts `count` pods with several workers; returns the results of `start`.
fn by_workers<T: Send>(count: usize, start: impl Fn() -> Result<T> + Sync) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(count));
    let work = || -> Result<()> {
        while next.fetch_add(1, Ordering::Relaxed) < count {
            interrupt::check()?;
            let one = start()?;
            done.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(one);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a worker panicked")))
        })
    })?;
    Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Each app starts as early as with a fast runtime; by then its endpoint must exist.
fn one_by_one(bench: &mut Bench, map: &Map, name: &str, order: Order, count: usize) -> Result<()> {
    let light = &bench.light;
    let (mut margins, mut late) = (Vec::new(), Vec::new());
    for one in by_workers(count, || start(light, map, order))? {
        match one {
            Stands::Before(margin) => margins.push(margin),
            Stands::After(lateness) => late.push(ms(lateness)),
        }
    }
    margins.sort_unstable();
    let least = margins.first().copied().unwrap_or_default();
    let median = margins.get(margins.len() / 2).copied().unwrap_or_default();
    let what = format!("{count} pod starts, {name}");
    bench.row(
        &format!("{what}: app ran before its endpoint was in place"),
        late.len().to_string(),
        "0",
    );
    let measured = format!("{} least, {} median", ms(least), ms(median));
    bench.row(&format!("{what}: endpoint before app by"), measured, "");
    if !late.is_empty() {
        bench.wrong.push(format!(
            "{what}: apps ran before their endpoints were in place, by {}",
            late.join(", ")
        ));
    }
    Ok(())
}

/// When an endpoint existed, and how long before or after the app's start.
enum Stands {
    Before(Duration),
    After(Duration),
}

fn start(light: &Light, map: &Map, order: Order) -> Result<Stands> {
    let mut pod = light.bind(RuleSet::IstioNft)?;
    pod.pod.start_sandbox(order)?;
    let address = pod.address()?;
    let made = Instant::now() + CONTAINER_IS_MADE;
    let mut stood = None;
    while Instant::now() < made {
        if stood.is_none() && map.has(address)? {
            stood = Some(Instant::now());
        }
        thread::park_timeout(if stood.is_none() {
            LOOK
        } else {
            made.saturating_duration_since(Instant::now())
        });
    }
    let (container, (stands, runs)) = pod
        .pod
        .idle_container(|| (map.has(address), Instant::now()))?;
    drop(container);
    let stands = if stands? {
        Stands::Before(runs - stood.unwrap_or(runs))
    } else {
        wait::until("the endpoint to stand", GRACE, || {
            map.has(address).unwrap_or(false).then_some(())
        })?;
        Stands::After(runs.elapsed())
    };
    pod.pod.end()?;
    Ok(stands)
}

/// Each app is probed as soon as it listens, and then each second.
fn at_once(bench: &Bench, rules: RuleSet) -> Result<(Duration, Tally)> {
    let schedule = Schedule::start(&bench.kubelet);
    let light = &bench.light;
    let begun = Instant::now();
    let pods = by_workers(AT_ONCE, || {
        let mut pod = light.bind(rules)?;
        pod.start_sandbox()?;
        light.start_app(&mut pod)?;
        let id = schedule.join(pod.probe()?, pod.status, PERIOD, Duration::ZERO);
        pod.pod.report_running()?;
        Ok((id, pod))
    })?;
    let took = begun.elapsed();
    wait::pass(PROBED)?;
    let ended: Vec<LightPod> = pods
        .into_iter()
        .map(|(id, pod)| {
            schedule.leave(id);
            pod
        })
        .collect();
    let tally = schedule.stop()?;
    ended.into_iter().try_for_each(LightPod::end)?;
    Ok((took, tally))
}
