//! A pod whose rules make each connection from the node costly, and change all the time, does not delay the daemon.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::declared::{self, by_kernel};
use crate::command;
use crate::rules::RuleSet;
use crate::suite::cases::Cases;
use crate::suite::env::Env;
use crate::suite::neighbours::make_costly_from_outside;

/// How long the rules change. Each change causes a trial connection.
const CHANGES: Duration = Duration::from_secs(4);

pub(super) fn run(cases: &mut Cases) -> Result<()> {
    let name = "costly/trials-do-not-hold-up-the-daemon";
    if cases.wants(name) && !cases.skip_if_emulated(name) {
        cases.case_in(name, trials);
    }
    Ok(())
}

fn trials(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &["--kernel-path", "--scope", "all"])?;
    let pod = env.pod(declared::pod("costly").rules(RuleSet::None))?;
    by_kernel(&env.daemon, &pod)?;
    let cost = make_costly_from_outside(&pod.ns)?;
    let before = main_thread(env.daemon.pid())?;
    let begun = Instant::now();
    while begun.elapsed() < CHANGES {
        for what in ["add", "delete"] {
            pod.ns
                .run(|| command::run("nft", &[what, "table", "inet", "changing"], "").map(drop))?;
        }
    }
    let (busy, elapsed) = (main_thread(env.daemon.pid())? - before, begun.elapsed());
    println!(
        "     a connection costs {cost:?}; the main thread was busy for {busy:?} of {elapsed:?}"
    );
    ensure!(
        busy < elapsed / 10,
        "the main thread was busy for {busy:?} of {elapsed:?}"
    );
    Ok(())
}

/// The processor time of a process's main thread.
fn main_thread(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/task/{pid}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let nanos = text.split_whitespace().next().context("an empty file")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}
