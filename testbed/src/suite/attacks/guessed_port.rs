//! Another process connects to the handler from the source port of the kubelet's next connection, and resets it. That
//! connection is then ahead of the kubelet's in the handler's accept queue.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::kubelet::Action;
use crate::pod::Pod;
use crate::port_guesser::{MARK, PortGuesser};
use crate::suite::cases::Cases;
use crate::suite::env::Env;
use crate::suite::sample_pod::{self, Probing};
use crate::wait;

/// Duration of the attack.
const TIME: Duration = Duration::from_secs(5);
/// How long the daemon is stopped at intervals, so that connections wait in the accept queue, as on a busy
/// node.
const BUSY: Duration = Duration::from_millis(20);
/// How long it runs in between.
const FREE: Duration = Duration::from_millis(40);
/// Interval between two probes of one prober: with shorter ones the pod's checks would cost so much that it is not served.
const INTERVAL: Duration = Duration::from_millis(40);
/// Probers for each probe.
const PROBERS: usize = 2;

pub fn run(cases: &mut Cases) -> Result<()> {
    let names = ["guessed-port/v4", "guessed-port/v6"];
    if !names.iter().any(|name| cases.wants(name)) {
        return Ok(());
    }
    // Both cases are counted as skipped.
    let emulated = names.map(|name| cases.skip_if_emulated(name));
    if emulated.contains(&true) {
        return Ok(());
    }
    let env = Env::start(cases, &[])?;
    let pod = env.pod(sample_pod::pod("guessed"))?;
    let guesser = PortGuesser::start()?;
    let time = cases.lasting(TIME);
    for (name, loopback, ip) in [
        (
            "v4",
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V4(pod.ns.ipv4()),
        ),
        (
            "v6",
            IpAddr::V6(Ipv6Addr::LOCALHOST),
            IpAddr::V6(pod.ns.ipv6()),
        ),
    ] {
        cases.case(&format!("guessed-port/{name}"), || {
            guessed_port(&env, &pod, &guesser, time, loopback, ip)
        });
    }
    Ok(())
}

fn guessed_port(
    env: &Env,
    pod: &Pod,
    guesser: &PortGuesser,
    time: Duration,
    loopback: IpAddr,
    ip: IpAddr,
) -> Result<()> {
    let mut handler = env.daemon.handler()?.into_iter();
    let handler = handler.find(|address| address.ip() == loopback);
    let handler = handler.with_context(|| format!("no handler on {loopback}"))?;
    let mut probed = sample_pod::probes(ip);
    // TCP probes send no request that an app could record.
    probed.retain(|case| !matches!(case.probe.action, Action::Tcp));
    let probes = probed.iter().map(|case| case.probe.clone());
    let probes = std::iter::repeat_n(probes, PROBERS).flatten().collect();
    let _earlier = pod.app.take_recorded()?;

    let probing = Probing::every(&Arc::clone(&env.kubelet), probes, INTERVAL);
    let attack = guesser.attack(handler, time)?;
    let begun = Instant::now();
    let mut got_in = Vec::new();
    while begun.elapsed() < time {
        let stopped = env.daemon.stand_still()?;
        wait::pass(BUSY)?;
        drop(stopped);
        wait::pass(FREE)?;
        // The app keeps a limited number of requests.
        got_in.extend(port_guessers_requests(pod)?);
    }
    let guesses = attack.wait()?;
    let made = probing.stop()?;
    got_in.extend(port_guessers_requests(pod)?);
    let wrong: Vec<_> = made
        .iter()
        .filter(|made| !sample_pod::is_expected(&probed, made))
        .collect();
    println!(
        "     {guesses:?} beside {} probes: {} requests reached the app, {} probes are wrong",
        made.len(),
        got_in.len(),
        wrong.len()
    );
    ensure!(
        guesses.made > 100,
        "too few guesses to be an attack: {guesses:?}"
    );
    ensure!(
        got_in.is_empty() && wrong.is_empty(),
        "{} of the process's requests reached the app, {} of {} probes are wrong: {:?} {:?}",
        got_in.len(),
        wrong.len(),
        made.len(),
        got_in.first(),
        wrong.first(),
    );
    Ok(())
}

/// The heads of the attacker's requests that reached the app.
fn port_guessers_requests(pod: &Pod) -> Result<Vec<String>> {
    let recorded = pod.app.take_recorded()?.into_iter();
    Ok(recorded
        .map(|request| request.head)
        .filter(|head| head.contains(MARK))
        .collect())
}
