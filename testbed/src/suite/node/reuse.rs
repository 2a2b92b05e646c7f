//! An address moves from one pod to the next within milliseconds, in every order of events: no answer comes
//! from the wrong pod.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::env::Env;
use crate::app::AppSpec;
use crate::kubelet::Probe;
use crate::node::{NodePod, Order};
use crate::pace;
use crate::suite::cases::Cases;
use crate::suite::sample_pod::{self, HTTP, Probing, TimedProbe};

/// The pods' statuses, which identify them.
pub const STATUSES: [u16; 2] = [200, 418];
/// How often the address moves for each order of events.
const ROUNDS: usize = 4;
/// One in this many probes may get no answer because the machine was stalled.
pub const FEW: usize = 50;
/// A probe's timeout: with one second there would be too few probes.
const TIMEOUT: Duration = Duration::from_millis(300);

/// When the API server reports the change.
#[derive(Clone, Copy, Debug)]
enum Told {
    /// The old pod is deleted before its sandbox ends.
    Before,
    /// After the new pod has the address.
    After,
    /// Never.
    Never,
}

pub(super) fn run(cases: &mut Cases, env: &Env) {
    for (name, told) in [
        ("deleted-before", Told::Before),
        ("deleted-after", Told::After),
        ("never-deleted", Told::Never),
    ] {
        cases.case(&format!("address-reuse/{name}"), || reused(env, name, told));
    }
}

/// A pod that had the address, with times.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Its status.
    pub status: u16,
    /// The earliest time at which the pod may have the address.
    pub from: Instant,
    /// When the daemon began to serve it.
    pub served: Option<Instant>,
    /// When its end began.
    pub leaving: Option<Instant>,
    /// When it had ended.
    pub until: Option<Instant>,
}

fn reused(env: &Env, name: &str, told: Told) -> Result<()> {
    let (_, ipv4, ipv6) = env.run.next_pod_ips();
    let ip = IpAddr::V4(ipv4);
    let bind = |round: usize| -> Result<NodePod> {
        let spec = sample_pod::pod(&format!("{name}-{round}"));
        let app = AppSpec::new()
            .http(HTTP)
            .grpc(sample_pod::GRPC)
            .tcp(sample_pod::OPEN);
        let app = app.status("/healthy", STATUSES[round % 2]);
        let mut pod = env.node.bind(spec.app(app))?;
        pod.make_cgroup()?;
        Ok(pod)
    };
    let start = |pod: &mut NodePod, round: usize| -> Result<Held> {
        let from = Instant::now();
        pod.start_sandbox_at(Order::NetworkFirst, Some((ipv4, ipv6)))?;
        pod.start_containers()?;
        Ok(Held {
            status: STATUSES[round % 2],
            from,
            served: None,
            leaving: None,
            until: None,
        })
    };
    let mut old = bind(0)?;
    let mut held = vec![start(&mut old, 0)?];
    old.report_running()?;
    env.served(&old)?;
    let probe = Probe::http(ip, HTTP, "/healthy").timeout(TIMEOUT);
    let probing = Probing::start(&env.kubelet, vec![probe.clone(), probe.clone(), probe]);
    let mut gone = Vec::new();
    for round in 1..=ROUNDS {
        let mut new = bind(round)?;
        let leaving = Instant::now();
        if matches!(told, Told::Before) {
            old.delete()?;
        }
        old.stop()?;
        if let Some(last) = held.last_mut() {
            (last.leaving, last.until) = (Some(leaving), Some(Instant::now()));
        }
        held.push(start(&mut new, round)?);
        if matches!(told, Told::After) {
            old.delete()?;
        }
        new.report_running()?;
        env.served(&new)?;
        if let Some(last) = held.last_mut() {
            last.served = Some(Instant::now());
        }
        let result = env.kubelet.probe(&Probe::http(ip, HTTP, "/healthy"))?;
        ensure!(
            result.status == Some(STATUSES[round % 2]),
            "the new pod is not asked: {result:?}"
        );
        gone.push(std::mem::replace(&mut old, new));
    }
    let made = probing.stop()?;
    let answered = made
        .iter()
        .filter(|made| made.result.status.is_some())
        .count();
    println!("     {} probes, {answered} of them answered", made.len());
    let mut excused = 0;
    for made in &made {
        excused += usize::from(right(made, &held)? == Judged::StoodStill);
    }
    ensure!(
        excused * FEW <= made.len(),
        "{excused} of {} probes of a pod that is there got no answer",
        made.len()
    );
    Ok(())
}

/// The result of [`right`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// The probe's result is correct.
    Right,
    /// A running pod did not answer within the probe's short timeout, because the machine or the daemon was
    /// stalled: at most one in [`FEW`] may.
    StoodStill,
}

/// The pod that answers must have had the address at some time during the probe, and a pod that was served and running
/// all the time must have answered. The daemon sends other statuses if the app cannot be reached.
///
/// # Errors
/// The result is wrong.
pub fn right(made: &TimedProbe, held: &[Held]) -> Result<Judged> {
    let (begun, ended) = (made.begun, made.ended);
    let there = held.iter().find(|held| {
        held.served.is_some_and(|served| served <= begun)
            && held.leaving.is_none_or(|leaving| leaving >= ended)
    });
    if let Some(there) = there {
        if ended.duration_since(begun) >= pace::stretch(TIMEOUT) {
            return Ok(Judged::StoodStill);
        }
        ensure!(
            made.result.status == Some(there.status),
            "the pod that is there did not answer: {made:?}"
        );
    }
    let Some(status) = made
        .result
        .status
        .filter(|status| STATUSES.contains(status))
    else {
        return Ok(Judged::Right);
    };
    let by = held.iter().any(|held| {
        held.status == status && held.from <= ended && held.until.is_none_or(|until| until >= begun)
    });
    ensure!(
        by,
        "an answer from a pod that did not have the address: {made:?}"
    );
    Ok(Judged::Right)
}
