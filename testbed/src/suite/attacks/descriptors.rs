//! A daemon without free file descriptors does not accept probes that it cannot answer.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::command;
use crate::daemon::Daemon;
use crate::rules::RuleSet;
use crate::suite::cases::Cases;
use crate::suite::env::Env;
use crate::suite::sample_pod::{self, Probing};
use crate::{pace, wait};

/// How long there are no free descriptors.
const WITHOUT: Duration = Duration::from_secs(4);
/// How long the daemon may take to notice that there are free descriptors again.
const GRACE: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(50);

pub fn run(cases: &mut Cases) -> Result<()> {
    // With one free descriptor the daemon can accept a connection, but not dial the app.
    for (name, left) in [("none", 0), ("one", 1)] {
        cases.case_in(&format!("descriptors/{name}"), |cases| {
            descriptors(cases, left)
        });
    }
    Ok(())
}

/// Limits the daemon to `left` more descriptors for a while.
fn descriptors(cases: &mut Cases, left: u64) -> Result<()> {
    let env = Env::start(cases, &["--scope", "all"])?;
    let pod = env.pod(sample_pod::pod("descriptors").rules(RuleSet::None))?;
    let mut all = sample_pod::probes(pod.ns.ipv4().into());
    all.extend(sample_pod::probes(pod.ns.ipv6().into()));
    let probes = all.iter().map(|case| case.probe.clone()).collect();
    // Runs while no connection is open, so that no descriptor is freed meanwhile.
    let mut lowest = lowest_free(&env.daemon)?;
    wait::until(
        "the daemon's descriptors to come to rest",
        GRACE * 5,
        || {
            wait::pass(Duration::from_millis(100)).ok()?;
            let before = std::mem::replace(&mut lowest, lowest_free(&env.daemon).ok()?);
            (before == lowest).then_some(())
        },
    )?;
    let probing = Probing::every(&Arc::clone(&env.kubelet), probes, pace::stretch(INTERVAL));
    probing.more(5)?;

    let limit = Limit::lower(&env.daemon, lowest + left)?;
    let (from, grace) = (Instant::now(), pace::stretch(GRACE));
    wait::pass(pace::stretch(WITHOUT))?;
    let until = Instant::now();
    drop(limit);
    let before = env.daemon.counter("redirected")?;
    let served = wait::until("the handler to serve again", GRACE, || {
        (env.daemon.counter("redirected").ok()? > before).then_some(())
    });
    wait::pass(grace)?;
    probing.more(5)?;
    let made = probing.stop()?;

    let between = |from: Instant, until: Instant| {
        made.iter()
            .filter(|made| (from..until).contains(&made.begun))
            .filter(|made| !sample_pod::is_expected(&all, made))
            .collect::<Vec<_>>()
    };
    let (first, later) = (between(from, from + grace), between(from + grace, until));
    let after = between(until + grace, Instant::now());
    println!(
        "     {} probes; wrong: {} in the first second without descriptors, {} later, {} once there were some again",
        made.len(),
        first.len(),
        later.len(),
        after.len()
    );
    let wrong: Vec<_> = first.into_iter().chain(later).collect();
    sample_pod::none_wrong("without descriptors", &wrong)?;
    sample_pod::none_wrong("once there are some again", &after)?;
    served
}

/// The number of the daemon's next descriptor.
fn lowest_free(daemon: &Daemon) -> Result<u64> {
    let open: BTreeSet<u64> = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().parse()?))
        .collect::<Result<_>>()?;
    (0..)
        .find(|number| !open.contains(number))
        .context("all numbers are taken")
}

/// A lowered limit of descriptors.
struct Limit {
    pid: String,
    before: String,
}

impl Limit {
    fn lower(daemon: &Daemon, to: u64) -> Result<Self> {
        let pid = daemon.pid().to_string();
        let shown = [
            "--pid",
            &pid,
            "--nofile",
            "--raw",
            "--noheadings",
            "--output",
            "SOFT",
        ];
        let output = command::run("prlimit", &shown, "")?;
        let before = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        set(&pid, &to.to_string())?;
        Ok(Self { pid, before })
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Err(error) = set(&self.pid, &self.before) {
            eprintln!("testbed: {error:#}");
        }
    }
}

fn set(pid: &str, soft: &str) -> Result<()> {
    let limit = format!("--nofile={soft}:");
    command::run("prlimit", &["--pid", pid, &limit], "").map(drop)
}
