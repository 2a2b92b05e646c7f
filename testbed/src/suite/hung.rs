//! The daemon, or only its handler, hangs: probes take the same path as without the daemon.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::cases::Cases;
use super::env::Env;
use super::sample_pod::{self, Case, HTTP, Probing, TimedProbe};
use crate::daemon::{Daemon, DaemonSpec};
use crate::freeze::Frozen;
use crate::kubelet::Probe;
use crate::pod::Pod;
use crate::rules::RuleSet;
use crate::{pace, wait};

/// How long the daemon is stopped.
const STILL: Duration = Duration::from_secs(5);
/// How soon probes must be correct again: the heartbeat's default timeout. Also how soon the handler must serve again.
const GRACE: Duration = Duration::from_secs(1);
/// How long the handler's thread may hang before the process ends itself, and the tolerance.
const WATCHDOG: Duration = Duration::from_secs(10);
const LATE: Duration = Duration::from_secs(5);
/// Interval between two probes of one prober.
const INTERVAL: Duration = Duration::from_millis(50);
const PILOT_AGENT: u16 = 15020;

pub fn run(cases: &mut Cases) -> Result<()> {
    cases.case_in("stopped-without-a-mesh", |cases| {
        stopped_alone(cases, &["--scope", "all"], plain)
    });
    cases.case_in("stopped-with-pilot-agent", |cases| {
        stopped_alone(cases, &[], taken_over)
    });
    for which in ["first", "second"] {
        cases.case_in(&format!("stopped-of-two/{which}"), |cases| {
            stopped_of_two(cases, which == "first")
        });
    }
    cases.case_in("stopped-for-long", stopped_for_long);
    if !cases.skip_if_emulated("handler-thread-frozen") {
        cases.case_in("handler-thread-frozen", handler_thread_frozen);
    }
    Ok(())
}

/// A pod and its expected results.
type Probed = (Pod, Vec<Case>);

/// A pod without a mesh.
fn plain(env: &Env) -> Result<Probed> {
    let pod = env.pod(sample_pod::pod("plain").rules(RuleSet::None))?;
    let expected = pod
        .ns
        .ips()
        .into_iter()
        .flat_map(sample_pod::probes)
        .collect();
    Ok((pod, expected))
}

/// A pod whose probes Istio's injector has rewritten, with a pilot-agent that answers them.
fn taken_over(env: &Env) -> Result<Probed> {
    let (livez, readyz) = ("/app-health/web/livez", "/app-health/web/readyz");
    let pod = env.pod(
        sample_pod::pod("taken-over")
            .istio_prober(livez, sample_pod::http(HTTP, "/healthy"))
            .istio_prober(readyz, sample_pod::http(HTTP, "/failing"))
            .container(sample_pod::container(
                "web",
                sample_pod::http(PILOT_AGENT, livez),
                sample_pod::http(PILOT_AGENT, readyz),
            )),
    )?;
    let case = |path, healthy| Case {
        probe: Probe::http(pod.ns.ipv4(), PILOT_AGENT, path),
        healthy,
        passes_without_daemon: healthy,
    };
    let expected = vec![case(livez, true), case(readyz, false)];
    Ok((pod, expected))
}

/// Continuous probing of all expected cases.
fn probing(env: &Env, expected: &[Case]) -> Result<Probing> {
    let probes = expected.iter().map(|case| case.probe.clone()).collect();
    let probing = Probing::every(&Arc::clone(&env.kubelet), probes, pace::stretch(INTERVAL));
    probing.more(5)?;
    Ok(probing)
}

/// The number of connections to the handlers of all daemons.
fn redirected(daemons: &[&Daemon]) -> Result<u64> {
    let counts = daemons.iter().map(|daemon| daemon.counter("redirected"));
    counts.sum()
}

/// A single daemon with `args` serves the pod that `start` starts, and is stopped.
fn stopped_alone(
    cases: &mut Cases,
    args: &[&str],
    start: fn(&Env) -> Result<Probed>,
) -> Result<()> {
    let env = Env::start(cases, args)?;
    let (_pod, expected) = start(&env)?;
    let time = cases.lasting(STILL);
    stopped(&env, &expected, &[&env.daemon], &env.daemon, time)
}

/// Stops `daemon`, one of `daemons`, for `time` and continues it.
fn stopped(
    env: &Env,
    expected: &[Case],
    daemons: &[&Daemon],
    daemon: &Daemon,
    time: Duration,
) -> Result<()> {
    let grace = pace::stretch(GRACE);
    let probing = probing(env, expected)?;
    let from = Instant::now();
    let still = daemon.stand_still()?;
    wait::pass(time)?;
    let until = Instant::now();
    drop(still);
    let before = redirected(daemons)?;
    let served = wait::until("a handler to serve again", GRACE, || {
        (redirected(daemons).ok()? > before).then_some(())
    });
    wait::pass(grace)?;
    probing.more(5)?;
    let made = probing.stop()?;
    let judged = Judged {
        expected,
        made: &made,
    };
    println!(
        "     {} probes; wrong: {} begun in the first second, {} later, {} in the first second after, {} later",
        made.len(),
        judged.wrong(from, from + grace).len(),
        judged.wrong(from + grace, until).len(),
        judged.wrong(until, until + grace).len(),
        judged.wrong(until + grace, Instant::now()).len(),
    );
    judged.right("while it stands still", from + grace, until)?;
    judged.right("when it goes on", until + grace, Instant::now())?;
    served
}

/// Probes that were made, and their expected results.
struct Judged<'a> {
    expected: &'a [Case],
    made: &'a [TimedProbe],
}

impl Judged<'_> {
    /// Wrong results of probes that began between the two times.
    fn wrong(&self, from: Instant, until: Instant) -> Vec<&TimedProbe> {
        let begun = |made: &&TimedProbe| (from..until).contains(&made.begun);
        let made = self.made.iter().filter(begun);
        made.filter(|made| !sample_pod::is_expected(self.expected, made))
            .collect()
    }

    fn right(&self, when: &str, from: Instant, until: Instant) -> Result<()> {
        sample_pod::none_wrong(when, &self.wrong(from, until))
    }
}

/// Two daemons serve one kubelet, as in an upgrade; one of them is stopped.
fn stopped_of_two(cases: &mut Cases, first: bool) -> Result<()> {
    let env = Env::start(cases, &[])?;
    let pod = env.pod(sample_pod::pod("two"))?;
    let second = DaemonSpec::new("second")
        .program(cases.daemon())
        .kubelet_cgroup(&env.cgroup)
        .pods(env.daemon.pods())
        .start(&env.run)?;
    second.wait_served(&pod)?;
    let expected: Vec<_> = pod
        .ns
        .ips()
        .into_iter()
        .flat_map(sample_pod::probes)
        .collect();
    let daemon = if first { &env.daemon } else { &second };
    stopped(
        &env,
        &expected,
        &[&env.daemon, &second],
        daemon,
        cases.lasting(STILL),
    )
}

/// If not only the handler's thread was stopped, the daemon must not end itself.
fn stopped_for_long(cases: &mut Cases) -> Result<()> {
    let mut env = Env::start(cases, &[])?;
    let pod = env.pod(sample_pod::pod("long"))?;
    let still = env.daemon.stand_still()?;
    wait::pass(WATCHDOG + Duration::from_secs(2))?;
    drop(still);
    // Wait long enough to see that it does not end.
    if let Ok(status) = env.daemon.wait_end(Duration::from_secs(3)) {
        bail!("it ended with {status}:\n{}", env.daemon.log_tail());
    }
    ensure!(env.daemon.get("/healthz")?.0 == 200, "it is not alive");
    let before = env.daemon.counter("redirected")?;
    sample_pod::check_verdicts(&env.kubelet, pod.ns.ipv4().into())?;
    ensure!(
        env.daemon.counter("redirected")? > before,
        "it does not serve"
    );
    Ok(())
}

/// Only the thread that answers probes hangs.
fn handler_thread_frozen(cases: &mut Cases) -> Result<()> {
    let mut env = Env::start(cases, &["--scope", "all"])?;
    let (_plain, mut expected) = plain(&env)?;
    let (_taken_over, more) = taken_over(&env)?;
    expected.extend(more);
    ensure!(is_alive(&env.daemon)?, "it is not alive at first");

    let grace = pace::stretch(GRACE);
    let probing = probing(&env, &expected)?;
    let from = Instant::now();
    let frozen = Frozen::thread(env.daemon.pid(), "handler")?;
    let seen = wait::until("the daemon to say that it is not well", GRACE * 2, || {
        let healthz = env.daemon.get("/healthz").ok()?.0;
        (healthz != 200 && !is_alive(&env.daemon).ok()?).then_some(())
    });
    let ended = env.daemon.wait_end(WATCHDOG + LATE);
    let took = from.elapsed();
    wait::pass(grace)?;
    let until = Instant::now();
    drop(frozen);
    let made = probing.stop()?;
    let judged = Judged {
        expected: &expected,
        made: &made,
    };
    println!(
        "     {} probes; wrong: {} begun in the first second, {} later; it ended after {took:?}: {ended:?}",
        made.len(),
        judged.wrong(from, from + grace).len(),
        judged.wrong(from + grace, until).len(),
    );
    judged.right("while the handler stands still", from + grace, until)?;
    seen?;
    let status = ended?;
    ensure!(!status.success(), "it ended with {status}");
    ensure!(
        took >= WATCHDOG.mul_f32(0.9),
        "it ended after {took:?} already, with {status}"
    );
    Ok(())
}

/// The request of the DaemonSet's liveness probe.
fn is_alive(daemon: &Daemon) -> Result<bool> {
    let status = Command::new(daemon.program())
        .args(["status", "--alive", "--admin-socket"])
        .arg(daemon.socket())
        .output()?
        .status;
    Ok(status.success())
}
