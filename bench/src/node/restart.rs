//! A daemon that is killed and restarted at once on a node with many pods: how long the mesh handles their
//! probes.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::light_pod::LightPod;
use super::{Bench, SERVED, endpoints, ms};
use testbed::{interrupt, wait};

/// How often it is killed.
const TIMES: usize = 7;
/// How often the kernel's map of endpoints is read.
const LOOK: Duration = Duration::from_millis(1);

/// Times after the kill, each a median over all kills.
#[derive(Default)]
struct Times {
    loaded: Vec<Duration>,
    first: Vec<Duration>,
    median: Vec<Duration>,
    last: Vec<Duration>,
    /// First correct result after all endpoints exist.
    right: Vec<Duration>,
}

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let count = if bench.quick { 50 } else { 250 };
    let pods = bench.pods(count)?;
    let addresses: Vec<_> = pods.iter().map(LightPod::address).collect::<Result<_>>()?;
    let mut daemon = bench.spec("restarted").start(&bench.run)?;
    let mut times = Times::default();
    for _ in 0..TIMES {
        interrupt::check()?;
        // An idle daemon, as is normal when a daemon is killed.
        wait::pass(Duration::from_secs(1))?;
        let killed = Instant::now();
        let _status = daemon.kill()?;
        daemon = bench.spec("restarted").spawn(&bench.run)?;
        let map = wait::until("the maps to be made", SERVED, || endpoints(&daemon).ok())?;
        times.loaded.push(killed.elapsed());
        let stood = stand(&addresses, killed, |address| map.has(address))?;
        times.first.push(stood[0]);
        times.median.push(stood[stood.len() / 2]);
        times.last.push(stood[stood.len() - 1]);
        // An endpoint may exist before the programs are attached.
        bench.right_answer(&pods[count - 1])?;
        times.right.push(killed.elapsed());
    }
    let what = format!("kill -9 and a new daemon, {count} pods, after the kill");
    bench.row(&format!("{what}: maps made"), spread(times.loaded), "");
    bench.row(
        &format!("{what}: first pod served"),
        spread(times.first),
        "",
    );
    bench.row(
        &format!("{what}: median pod served"),
        spread(times.median),
        "within 300 ms",
    );
    bench.row(&format!("{what}: last pod served"), spread(times.last), "");
    bench.row(
        &format!("{what}: a right answer after that"),
        spread(times.right),
        "",
    );
    Ok(())
}

/// When the endpoint of each of `addresses` existed, relative to `since`, sorted.
fn stand(
    addresses: &[SocketAddr],
    since: Instant,
    has: impl Fn(SocketAddr) -> Result<bool>,
) -> Result<Vec<Duration>> {
    let mut missing = addresses.to_vec();
    let mut stood = Vec::with_capacity(missing.len());
    while !missing.is_empty() {
        interrupt::check()?;
        let mut still = Vec::new();
        for address in missing {
            match has(address)? {
                true => stood.push(since.elapsed()),
                false => still.push(address),
            }
        }
        missing = still;
        ensure!(
            since.elapsed() < SERVED,
            "{} pods are not served",
            missing.len()
        );
        thread::park_timeout(LOOK);
    }
    stood.sort_unstable();
    Ok(stood)
}

/// The median and the range.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    match (times.first(), times.get(times.len() / 2), times.last()) {
        (Some(least), Some(median), Some(most)) => {
            format!("{} ({} to {})", ms(*median), ms(*least), ms(*most))
        }
        _ => "nothing".to_owned(),
    }
}
