//! An address that moves from one pod to the next as fast as possible.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::light_pod::{LightPod, probe};
use super::{Bench, GRACE, ms};
use testbed::interrupt;
use testbed::rules::RuleSet;
use testbed::suite::node::reuse::{Held, Judged, STATUSES, right};
use testbed::suite::sample_pod::Probing;
use testbed::wait;

/// A probe's timeout: with one second there would be too few probes.
const TIMEOUT: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(5);
/// The limit for "at once".
const WITHIN: Duration = Duration::from_millis(10);

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let rounds = if bench.quick { 20 } else { 200 };
    let mut daemon = bench.spec("reuse").start(&bench.run)?;
    let (_, ipv4, _) = bench.run.next_pod_ips();
    let ip = IpAddr::V4(ipv4);
    let mut old = next(bench, 0)?;
    let mut held = vec![give(bench, &mut old, ip, 0)?];
    serve(bench, &mut old, ip, &mut held)?;
    let pace = probe(ip).timeout(TIMEOUT);
    let probing = Probing::start(&bench.kubelet, vec![pace.clone(), pace.clone(), pace]);
    let (mut gaps, mut served) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        interrupt::check()?;
        let mut new = next(bench, round)?;
        let leaving = Instant::now();
        if round % 3 == 0 {
            old.pod.delete()?;
        }
        old.stop_app();
        // Its processes first, as a runtime does; the kernel removes the rest later.
        drop(old.pod.sandbox()?.pause.take());
        let ended = Instant::now();
        if let Some(last) = held.last_mut() {
            (last.leaving, last.until) = (Some(leaving), None);
        }
        let now = give(bench, &mut new, ip, round)?;
        gaps.push(ended.elapsed());
        // Answers to probes in progress may still come from the old pod.
        if let Some(last) = held.last_mut() {
            last.until = Some(Instant::now());
        }
        held.push(now);
        if round % 3 == 1 {
            old.pod.delete()?;
        }
        served.push(serve(bench, &mut new, ip, &mut held)?);
        let gone = std::mem::replace(&mut old, new);
        gone_for_good(gone)?;
    }
    let made = probing.stop()?;
    let wrong: Vec<String> = made
        .iter()
        .filter_map(|made| match right(made, &held) {
            Ok(Judged::Right) => None,
            Ok(Judged::StoodStill) => Some(format!("no answer in all of its time: {made:?}")),
            Err(error) => Some(format!("{error:#}")),
        })
        .collect();
    gaps.sort_unstable();
    served.sort_unstable();
    let within = gaps.iter().filter(|gap| **gap <= WITHIN).count();
    let what = format!("address moved {rounds} times");
    let measured = format!(
        "{} median; within 10 ms {within} times",
        ms(gaps[rounds / 2])
    );
    bench.row(
        &format!("{what}: from the old pod's end to the new one's address"),
        measured,
        "",
    );
    let measured = format!(
        "{} median, {} at most",
        ms(served[rounds / 2]),
        ms(served[rounds - 1])
    );
    bench.row(
        &format!("{what}: until the new pod's probe passes"),
        measured,
        "",
    );
    let measured = format!("{} of {} probes", wrong.len(), made.len());
    bench.row(&format!("{what}: wrong verdicts"), measured, "0");
    if !wrong.is_empty() {
        let examples = wrong
            .iter()
            .take(5)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n    ");
        bench
            .wrong
            .push(format!("{what}: {}\n    {examples}", wrong.len()));
    }
    gone_for_good(old)?;
    let _status = daemon.stop(GRACE)?;
    Ok(())
}

/// A pod that is complete except for the address.
fn next(bench: &Bench, round: usize) -> Result<LightPod> {
    let mut pod = bench.light.bind(RuleSet::IstioNft)?;
    pod.status = STATUSES[round % 2];
    pod.start_sandbox()?;
    bench.light.start_app(&mut pod)?;
    Ok(pod)
}

fn give(bench: &Bench, pod: &mut LightPod, ip: IpAddr, round: usize) -> Result<Held> {
    let from = Instant::now();
    let ns = pod.pod.ns()?;
    ns.route(ip, &bench.run)?;
    ns.ip(&format!("address add {ip}/32 dev eth0\n"))?;
    Ok(Held {
        status: STATUSES[round % 2],
        from,
        served: None,
        leaving: None,
        until: None,
    })
}

/// Reports the address as the kubelet does and waits until the pod's probe passes; returns the duration.
fn serve(bench: &Bench, pod: &mut LightPod, ip: IpAddr, held: &mut [Held]) -> Result<Duration> {
    let begun = Instant::now();
    pod.pod.update(|object| {
        object["status"] = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
    })?;
    let status = pod.status;
    wait::until("the new pod's answer", SOON, || {
        let result = bench.kubelet.probe(&probe(ip).timeout(TIMEOUT)).ok()?;
        (result.status == Some(status)).then_some(())
    })?;
    let took = begun.elapsed();
    if let Some(last) = held.last_mut() {
        last.served = Some(Instant::now());
    }
    ensure!(took < SOON, "served after {took:?}");
    Ok(took)
}

fn gone_for_good(mut pod: LightPod) -> Result<()> {
    pod.stop_app();
    pod.pod.end()
}
