//! Wrong verdicts under load: many probes, upgrade after upgrade, a daemon that ends with checks in flight, one with
//! little processor time, and one whose log nobody reads.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::light_pod::LightPod;
use super::schedule::Tally;
use super::{Bench, GRACE, all_served};
use testbed::cgroup::CpuQuota;
use testbed::daemon::Daemon;
use testbed::{interrupt, wait};

/// Probes of each pod.
const PROBES: u32 = 4;
/// The limited daemon's share of a processor, in percent, and its pods, which have one probe each.
const LITTLE: u32 = 2;
const FEW: usize = 12;
/// Timeout of the probes that are in flight at the daemon's end.
const LONG: Duration = Duration::from_secs(10);
/// Minimum size of the log that a full pipe contains. Its size is 64 KiB (pipe(7)), but it may end in a partly used
/// page.
const PIPE: usize = 60 << 10;

/// How much is done.
struct Size {
    pods: usize,
    steady: Duration,
    upgrades: Duration,
    few: Duration,
}

const FULL: Size = Size {
    pods: 250,
    steady: Duration::from_secs(150),
    upgrades: Duration::from_secs(60),
    few: Duration::from_secs(60),
};
const QUICK: Size = Size {
    pods: 50,
    steady: Duration::from_secs(10),
    upgrades: Duration::from_secs(10),
    few: Duration::from_secs(10),
};

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let size = if bench.quick { QUICK } else { FULL };
    let pods = bench.pods(size.pods)?;
    // Four fifths of the pods: 800 probes a second of 250 pods.
    steady(bench, &pods[..size.pods * 4 / 5], size.steady)?;
    log_not_read(bench, &pods, size.few)?;
    little_processor(bench, &pods[..FEW], size.few)?;
    upgrades(bench, &pods, size.upgrades)?;
    drop(pods);
    bench.light.timeout = LONG;
    let pods = bench.pods(size.pods)?;
    in_flight_at_the_end(bench, &pods)
}

/// Waits until a daemon serves all pods.
fn served(bench: &Bench, daemon: &Daemon, pods: &[LightPod]) -> Result<()> {
    all_served(daemon, pods)?;
    // An endpoint may exist before the programs are attached.
    if let Some(pod) = pods.last() {
        bench.right_answer(pod)?;
    }
    Ok(())
}

fn steady(bench: &mut Bench, pods: &[LightPod], time: Duration) -> Result<()> {
    let mut daemon = bench.spec("steady").start(&bench.run)?;
    served(bench, &daemon, pods)?;
    let schedule = bench.probed(pods, PROBES)?;
    wait::pass(time)?;
    let tally = schedule.stop()?;
    bench.verdicts(
        &format!("{} pods, {PROBES} probes each, {time:?}", pods.len()),
        &tally,
    );
    let _status = daemon.stop(GRACE)?;
    Ok(())
}

/// The daemon's log is a full pipe.
fn log_not_read(bench: &mut Bench, pods: &[LightPod], time: Duration) -> Result<()> {
    // The daemon itself keeps the pipe open for reading.
    const FULL_PIPE: &str = r#"mkfifo "$1" && exec 3<>"$1" && shift && exec "$@" >&3 2>&3"#;
    let pipe = bench.run.dir().join("log-pipe");
    let command = [
        "sh",
        "-c",
        FULL_PIPE,
        "sh",
        pipe.to_str().context("the path is no text")?,
    ];
    let spec = bench.spec("unread").wrapped(&command);
    let mut daemon = spec.arg("--log").arg("trace").start(&bench.run)?;
    served(bench, &daemon, pods)?;
    let schedule = bench.probed(pods, PROBES)?;
    wait::pass(time)?;
    let tally = schedule.stop()?;
    let unread = content(&pipe)?;
    ensure!(unread >= PIPE, "the pipe held only {unread} bytes");
    bench.verdicts("a log that nobody reads", &tally);
    let _status = daemon.stop(GRACE)?;
    Ok(())
}

/// The number of bytes in a pipe.
fn content(pipe: &Path) -> Result<usize> {
    let mut pipe = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(pipe)?;
    let mut buffer = [0; 4096];
    let mut read = 0;
    // The daemon continues to write, so this reads no more than a pipe contains.
    while read < PIPE {
        match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => read += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(read)
}

fn little_processor(bench: &mut Bench, pods: &[LightPod], time: Duration) -> Result<()> {
    let what = format!("the daemon has {LITTLE} % of a processor");
    let Some(quota) = CpuQuota::new(&bench.run, LITTLE)? else {
        bench.row(&what, "not measured: there is no cpu controller", "0");
        return Ok(());
    };
    let mut daemon = bench.spec("limited").start(&bench.run)?;
    served(bench, &daemon, pods)?;
    quota.add(daemon.pid())?;
    let schedule = bench.probed(pods, 1)?;
    wait::pass(time)?;
    let tally = schedule.stop()?;
    let throttled = quota.throttled()?;
    bench.verdicts(
        &format!("{what}, which ran out {throttled} times in {time:?}"),
        &tally,
    );
    // With its small share of a processor it would take long to end.
    let _status = daemon.kill()?;
    Ok(())
}

fn upgrades(bench: &mut Bench, pods: &[LightPod], time: Duration) -> Result<()> {
    let mut daemon = bench.spec("upgraded-0").start(&bench.run)?;
    served(bench, &daemon, pods)?;
    let schedule = bench.probed(pods, PROBES)?;
    let begun = Instant::now();
    let mut times = 0;
    while begun.elapsed() < time {
        interrupt::check()?;
        times += 1;
        let next = bench.spec(&format!("upgraded-{times}")).start(&bench.run)?;
        let mut old = std::mem::replace(&mut daemon, next);
        let _status = old.stop(GRACE)?;
    }
    let took = begun.elapsed();
    let tally = schedule.stop()?;
    bench.verdicts(&format!("{times} upgrades in {took:.0?}"), &tally);
    let _status = daemon.stop(GRACE)?;
    Ok(())
}

/// A daemon that is terminated finishes all checks in flight.
fn in_flight_at_the_end(bench: &mut Bench, pods: &[LightPod]) -> Result<()> {
    let mut daemon = bench.spec("ending").start(&bench.run)?;
    served(bench, &daemon, pods)?;
    bench.light.answers.hold(true);
    let mut pending = Vec::new();
    for pod in pods {
        for _ in 0..PROBES {
            pending.push((pod.status, bench.kubelet.begin(&pod.probe()?)?));
        }
    }
    wait::until("all requests to reach the apps", LONG / 2, || {
        (bench.light.answers.waiting() == pending.len()).then_some(())
    })?;
    daemon.signal(Signal::SIGTERM)?;
    let _log = daemon.wait_logged(&["draining"])?;
    bench.light.answers.hold(false);
    let mut tally = Tally::default();
    for (status, pending) in pending {
        let result = pending.wait()?;
        tally.made += 1;
        if result.status != Some(status) {
            tally.wrong += 1;
            tally.examples.push(result.message);
        }
    }
    let status = daemon.wait_end(GRACE)?;
    if !status.success() {
        bail!("the daemon ended with {status}");
    }
    bench.verdicts("checks in flight at SIGTERM", &tally);
    Ok(())
}
