//! The daemon's lifecycle: killed, stopped, started while another one runs.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use super::cases::Cases;
use super::env::{Env, GRACE, HANDLER_PATH};
use super::sample_pod::{self, HTTP, Probing};
use crate::bpf::{self, Held};
use crate::daemon::{Daemon, DaemonSpec};
use crate::kubelet::{Outcome, Probe, ProbePending};
use crate::pace;
use crate::pod::Pod;
use crate::wait;

const SOON: Duration = Duration::from_secs(5);
/// The timeout of the slow probes.
const SLOW: Duration = Duration::from_secs(10);
/// How often the daemon is replaced during continuous probing.
const REPLACED: usize = 5;
/// Probers for each probe.
const PROBERS: usize = 2;

pub fn run(cases: &mut Cases) -> Result<()> {
    // The kernel path leaves rules in pods, which hold its program (group `exemption`).
    cases.case_in("killed", |cases| {
        killed(&mut with_pod(cases, &[HANDLER_PATH])?)
    });
    cases.case_in("sigterm", |cases| {
        sigterm(&mut with_pod(cases, &[HANDLER_PATH])?)
    });
    cases.case_in("second-sigterm", |cases| {
        second_sigterm(&mut with_pod(cases, &[])?)
    });
    cases.case_in("drain-timeout", |cases| {
        drain_timeout(&mut with_pod(cases, &["--drain-timeout", "1"])?)
    });
    cases.case_in("kernel-log", |cases| {
        kernel_log(&with_pod(cases, &["--kernel-log"])?)
    });
    cases.case_in("same-admin-socket", |cases| {
        let with = with_pod(cases, &[])?;
        same_socket(cases, &with)
    });
    cases.case_in("overlap", |cases| replaced(cases, 1));
    cases.case_in("replaced-again-and-again", |cases| {
        replaced(cases, REPLACED)
    });
    Ok(())
}

struct WithPod {
    pod: Pod,
    env: Env,
}

fn with_pod(cases: &mut Cases, args: &[&str]) -> Result<WithPod> {
    let env = Env::start(cases, args)?;
    // The drain ends the checks, not their own timeout.
    let slow = |ms: u32| {
        let mut probe = sample_pod::http(HTTP, &format!("/slow?ms={ms}"));
        probe["timeoutSeconds"] = json!(SLOW.as_secs());
        probe
    };
    let pod = env.pod(sample_pod::pod("daemons").container(sample_pod::container(
        "slow",
        slow(700),
        slow(8000),
    )))?;
    Ok(WithPod { pod, env })
}

/// `--kernel-log` logs the decision on each connection to an endpoint, with its address.
fn kernel_log(with: &WithPod) -> Result<()> {
    for ip in with.pod.ns.ips() {
        let shown = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        with.env
            .passes(&Probe::http(ip, HTTP, "/slow?ms=700").timeout(SLOW))?;
        let line = format!("[{shown}]:{HTTP} goes to the handler");
        let _line = with.env.daemon.wait_logged(&[&line])?;
    }
    Ok(())
}

/// A daemon leaves nothing behind: no program, no map, no link, no file.
fn nothing_left(env: &Env, held: &Held) -> Result<()> {
    // The kernel frees a process's resources shortly after its end.
    let mut left = Held::default();
    let freed = wait::until("the kernel to free programs and maps", SOON, || {
        left = held.left().ok()?;
        left.is_empty().then_some(())
    });
    ensure!(freed.is_ok(), "still there: {left:?}");
    let attached = bpf::attached(env.cgroup.path())?;
    ensure!(attached == 0, "{attached} programs are still attached");
    Ok(())
}

fn held(daemon: &Daemon) -> Result<Held> {
    let held = Held::by(daemon.pid())?;
    ensure!(
        held.programs.len() >= 5 && held.maps.len() >= 6,
        "the daemon holds too little to be true: {held:?}"
    );
    let there = held.left()?;
    ensure!(there == held, "the kernel has {there:?} of {held:?}");
    Ok(held)
}

fn killed(WithPod { pod, env }: &mut WithPod) -> Result<()> {
    let ip: IpAddr = pod.ns.ipv4().into();
    sample_pod::check_verdicts(&env.kubelet, ip)?;
    let held = held(&env.daemon)?;
    let _killed = env.daemon.kill()?;
    nothing_left(env, &held)?;
    for ip in pod.ns.ips() {
        sample_pod::check_mesh_only(&env.kubelet, ip)?;
    }
    // Its socket's file remains, and does not prevent the next daemon from starting.
    ensure!(env.daemon.socket().exists(), "who removed the socket?");
    let daemon = DaemonSpec::new("daemon")
        .kubelet_cgroup(&env.cgroup)
        .program(Some(env.daemon.program()))
        .start(&env.run)?;
    daemon.wait_served(pod)?;
    sample_pod::check_verdicts(&env.kubelet, ip)
}

/// Begins a slow check and waits until the app has received it.
fn begin_slow(with: &WithPod, ms: u32) -> Result<ProbePending> {
    let probe = Probe::http(with.pod.ns.ipv4(), HTTP, &format!("/slow?ms={ms}")).timeout(SLOW);
    let pending = with.env.kubelet.begin(&probe)?;
    wait::until("the app to be asked", SOON, || {
        let asked = with.pod.app.take_recorded().ok()?;
        asked
            .iter()
            .any(|request| request.head.contains("/slow"))
            .then_some(())
    })?;
    Ok(pending)
}

fn sigterm(with: &mut WithPod) -> Result<()> {
    let held = held(&with.env.daemon)?;
    let slow = begin_slow(with, 700)?;
    let begun = Instant::now();
    with.env.daemon.signal(Signal::SIGTERM)?;
    // While it drains it accepts no new connections.
    wait::until("the connect programs to be taken off", SOON, || {
        // The map entries of open connections remain until these end.
        let attached = crate::bpf::attached(with.env.cgroup.path()).ok()?;
        (attached <= 4).then_some(())
    })?;
    let new = with
        .env
        .kubelet
        .probe(&Probe::http(with.pod.ns.ipv4(), HTTP, "/healthy"))?;
    let result = slow.wait()?;
    ensure!(
        result.status == Some(200),
        "the check in flight was lost: {result:?}"
    );
    ensure!(
        new.outcome == Outcome::Failure && new.status.is_none(),
        "a new probe was still served: {new:?}"
    );
    let status = with.env.daemon.wait_end(GRACE)?;
    println!("     ended {:?} after SIGTERM", begun.elapsed());
    ensure!(status.code() == Some(0), "it ended with {status}");
    ensure!(
        begun.elapsed() < pace::stretch(Duration::from_secs(3)),
        "it took {:?} to drain a check of 0.7 s",
        begun.elapsed()
    );
    nothing_left(&with.env, &held)?;
    ensure!(
        !with.env.daemon.socket().exists(),
        "its socket's file is left"
    );
    for ip in with.pod.ns.ips() {
        sample_pod::check_mesh_only(&with.env.kubelet, ip)?;
    }
    Ok(())
}

fn second_sigterm(with: &mut WithPod) -> Result<()> {
    let slow = begin_slow(with, 8000)?;
    with.env.daemon.signal(Signal::SIGTERM)?;
    let _log = with.env.daemon.wait_logged(&["draining"])?;
    let begun = Instant::now();
    with.env.daemon.signal(Signal::SIGTERM)?;
    let status = with.env.daemon.wait_end(GRACE)?;
    println!("     ended {:?} after the second SIGTERM", begun.elapsed());
    ensure!(status.code() == Some(0), "it ended with {status}");
    ensure!(
        begun.elapsed() < pace::stretch(Duration::from_secs(2)),
        "it ended only after {:?}",
        begun.elapsed()
    );
    let result = slow.wait()?;
    ensure!(
        !result.passed(),
        "the check passed all the same: {result:?}"
    );
    Ok(())
}

fn drain_timeout(with: &mut WithPod) -> Result<()> {
    let slow = begin_slow(with, 8000)?;
    let begun = Instant::now();
    let status = with.env.daemon.stop(GRACE)?;
    let took = begun.elapsed();
    ensure!(status.code() == Some(0), "it ended with {status}");
    ensure!(
        (Duration::from_millis(900)..pace::stretch(Duration::from_secs(3))).contains(&took),
        "a drain of 1 s took {took:?}"
    );
    let result = slow.wait()?;
    ensure!(
        !result.passed(),
        "the check passed all the same: {result:?}"
    );
    Ok(())
}

/// The second of two daemons with the same admin socket serves too, and takes over the socket when the first has ended.
fn same_socket(cases: &Cases, WithPod { pod, env }: &WithPod) -> Result<()> {
    // The same name means the same directory and socket.
    let socket = env.daemon.socket().display().to_string();
    let second = DaemonSpec::new("second")
        .program(cases.daemon())
        .kubelet_cgroup(&env.cgroup)
        .pods(env.daemon.pods())
        .admin_socket(env.daemon.socket())
        .spawn(&env.run)?;
    let _log = second.wait_logged(&["another daemon answers on", &socket, "--admin-socket"])?;
    sample_pod::check_verdicts(&env.kubelet, pod.ns.ipv4().into())?;
    ensure!(env.daemon.get("/readyz")?.0 == 200, "the first one suffers");
    let answers = |daemon: &Daemon| {
        wait::until("the daemon to answer", SOON, || {
            (daemon.status().ok()?["pid"] == daemon.pid()).then_some(())
        })
    };
    answers(&env.daemon)?;
    env.daemon.signal(Signal::SIGTERM)?;
    answers(&second)?;
    second.wait_served(pod)?;
    sample_pod::check_verdicts(&env.kubelet, pod.ns.ipv4().into())
}

/// A new daemon starts while the old one runs, which then ends, during continuous probing.
fn replaced(cases: &mut Cases, times: usize) -> Result<()> {
    let mut env = Env::start(cases, &[])?;
    let pod = env.pod(sample_pod::pod("replaced"))?;
    let pods = env.daemon.pods().to_owned();
    let mut all = sample_pod::probes(pod.ns.ipv4().into());
    all.extend(sample_pod::probes(pod.ns.ipv6().into()));
    let probes = all.iter().map(|case| case.probe.clone());
    let probes: Vec<_> = std::iter::repeat_n(probes, pace::fewer(PROBERS))
        .flatten()
        .collect();
    let probers = probes.len();
    let probing = Probing::start_many(&Arc::clone(&env.kubelet), probes);
    let until = Instant::now() + cases.lasting(Duration::ZERO);
    let mut time = 0;
    while time < times || Instant::now() < until {
        let next = DaemonSpec::new(&format!("daemon-{time}"))
            .program(cases.daemon())
            .kubelet_cgroup(&env.cgroup)
            .pods(&pods)
            .start(&env.run)?;
        next.wait_served(&pod)?;
        let mut old = std::mem::replace(&mut env.daemon, next);
        let held = held(&old)?;
        let status = old.stop(GRACE)?;
        ensure!(status.success(), "the old daemon ended with {status}");
        wait::until("the old daemon's programs to go", SOON, || {
            // Daemons with the kernel path share a map.
            let shared = Held::by(env.daemon.pid()).ok()?;
            let left = held.left().ok()?;
            left.without(&shared).is_empty().then_some(())
        })?;
        probing.more(10)?;
        // Prints progress, because a guest without output for minutes counts as hung, and all rounds may take that long.
        time += 1;
        println!("     daemon {time} is replaced");
    }
    let made = probing.stop()?;
    let wrong: Vec<_> = made
        .iter()
        .filter(|made| {
            all.iter()
                .any(|case| case.probe == made.probe && !case.matches(&made.result))
        })
        .collect();
    println!(
        "     {} probes by {probers} probers while {time} daemons were replaced, p99 {:?}: {} wrong",
        made.len(),
        sample_pod::percentile(&made, 99),
        wrong.len()
    );
    sample_pod::none_wrong("while daemons are replaced", &wrong)
}
