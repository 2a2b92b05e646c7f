//! A node with few source ports: the kernel can use all of them for each destination, but all connections to the
//! handler have the same destination.

use std::fs;
use std::net::IpAddr;
use std::sync::Mutex;
use std::thread;

use anyhow::{Result, anyhow, ensure};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;

use crate::app::{AppSpec, Bind, Protocol};
use crate::command::ip_batch;
use crate::kubelet::{Kubelet, Probe, ProbeResult};
use crate::pod::PodSpec;
use crate::rules::RuleSet;
use crate::suite::cases::Cases;
use crate::suite::env::Env;
use crate::suite::sample_pod;

const PODS: usize = 20;
/// Number of each pod's ports with a TCP probe, and of those with an HTTP probe.
const OF_EACH_KIND: u16 = 100;
const TCP: u16 = 10_000;
const HTTP: u16 = 20_000;
/// Half the number of TCP probes, each of which leaves a port in TIME_WAIT for a minute.
const SOURCE_PORTS: &str = "40000 40999";
/// Concurrent probes.
const AT_ONCE: usize = 8;

pub fn run(cases: &mut Cases) -> Result<()> {
    for (name, rules) in [("plain", RuleSet::None), ("meshed", RuleSet::IstioRedirect)] {
        let name = format!("one-source-port-space/{name}");
        if !cases.skip_if_emulated(&name) {
            cases.case_in(&name, |cases| {
                on_a_node_of_its_own(|| few_source_ports(cases, rules))
            });
        }
    }
    Ok(())
}

/// Runs in a network namespace that is used as the node's: everything that the testbed creates meanwhile belongs to it,
/// so that the machine's own sysctls do not change.
pub(super) fn on_a_node_of_its_own(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    thread::scope(|scope| {
        let on_node = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            ip_batch("link set lo up\n")?;
            fs::write("/proc/sys/net/ipv4/ip_local_port_range", SOURCE_PORTS)?;
            fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "0")?;
            work()
        });
        on_node.join().map_err(|_| anyhow!("the work panicked"))?
    })
}

fn few_source_ports(cases: &mut Cases, rules: RuleSet) -> Result<()> {
    let env = Env::start(cases, &["--scope", "all"])?;
    let mut pods = Vec::with_capacity(PODS);
    for number in 0..PODS {
        pods.push(pod(&format!("p{number}"), rules).start(&env.run)?);
    }
    let probes: Vec<_> = pods
        .iter()
        .flat_map(|pod| declared(pod.ns.ipv4().into()))
        .collect();
    // The mesh forwards no plaintext, so in its pods the app's health is the expected result.
    let expected = match rules {
        RuleSet::None => right(&env.kubelet, &probes)?.0,
        _ => probes.len(),
    };
    for pod in &mut pods {
        pod.publish(env.daemon.pods())?;
    }
    for pod in &pods {
        env.daemon.wait_served(pod)?;
    }
    let (right, wrong) = right(&env.kubelet, &probes)?;
    println!(
        "     of {} probes {right} are right, {expected} should be; redirected: {}",
        probes.len(),
        env.daemon.counter("redirected")?
    );
    ensure!(
        right >= expected,
        "only {right} of {expected} are right: {wrong:?}"
    );
    Ok(())
}

fn pod(name: &str, rules: RuleSet) -> PodSpec {
    let mut spec = PodSpec::new(name).rules(rules);
    let mut app = AppSpec::new();
    for number in 0..OF_EACH_KIND {
        app = app.listen(Protocol::Tcp, Bind::DualStack, TCP + number);
        app = app.listen(Protocol::Http, Bind::DualStack, HTTP + number);
        spec = spec.container(sample_pod::container(
            &format!("c{number}"),
            json!({"tcpSocket": {"port": TCP + number}}),
            sample_pod::http(HTTP + number, "/healthy"),
        ));
    }
    spec.app(app)
}

fn declared(ip: IpAddr) -> impl Iterator<Item = Probe> {
    (0..OF_EACH_KIND).flat_map(move |number| {
        [
            Probe::tcp(ip, TCP + number),
            Probe::http(ip, HTTP + number, "/healthy"),
        ]
    })
}

/// The number of probes that pass, as all should, and a probe that does not pass.
fn right(kubelet: &Kubelet, probes: &[Probe]) -> Result<(usize, Option<(Probe, ProbeResult)>)> {
    let counted = Mutex::new((0, None));
    thread::scope(|scope| {
        let probers: Vec<_> = (0..AT_ONCE)
            .map(|first| {
                let counted = &counted;
                scope.spawn(move || -> Result<()> {
                    for probe in probes.iter().skip(first).step_by(AT_ONCE) {
                        let result = kubelet.probe(probe)?;
                        let mut counted = counted.lock().map_err(|_| anyhow!("poisoned"))?;
                        match result.passed() {
                            true => counted.0 += 1,
                            false => counted.1 = Some((probe.clone(), result)),
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let mut probers = probers.into_iter();
        probers.try_for_each(|prober| prober.join().map_err(|_| anyhow!("a prober panicked"))?)
    })?;
    counted.into_inner().map_err(|_| anyhow!("poisoned"))
}
