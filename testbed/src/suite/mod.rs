//! `testbed suite`: tests every rule of probe-handler's design with real mesh rules, real eBPF programs and
//! the real daemon, in network namespaces.
//!
//! One file per group of cases. Each sets up what it needs ([`env::Env`]) and reports its results to
//! [`cases::Cases`].

mod admin;
mod attacks;
pub mod cases;
mod command_line;
mod daemons;
mod demo;
pub mod env;
mod envoy;
mod exemption;
mod explain;
mod families;
mod hooks;
mod hostile;
mod http;
mod hung;
mod identity;
mod kernel;
mod kubelet_restart;
mod life;
mod locate;
mod mesh_settings;
mod multipath;
mod neighbours;
pub mod node;
mod observe;
mod own_redirects;
pub(crate) mod pod_pair;
mod ports;
mod privileges;
mod relays;
mod rewritten;
mod robust;
mod rules;
pub mod sample_pod;
mod sandbox;
mod settings;
mod source;
mod versions;
mod webhook;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{interrupt, run};
use cases::Cases;
pub use envoy::installed as installed_envoy;

/// Options of `testbed suite`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The daemon's program [default: probe-handler in the directory of this program]
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Envoy's program [default: the one that `cargo xtask setup` installed; without one the group `envoy` is skipped]
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
    /// Prometheus' promtool, which checks the metrics; without one that case is skipped
    #[arg(long, value_name = "PATH")]
    promtool: Option<PathBuf>,
    /// Repeat each attack (`attacks/guessed-port`), replace daemons (`daemons/replaced`) and keep each daemon stopped
    /// (`hung/stopped`) for this long instead of a few seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    lasting: Option<u64>,
    /// If at most this many cases fail, repeat them once at the end; those that pass then are reported as flaky and do not
    /// count as failed
    #[arg(long, value_name = "CASES", default_value_t = 0)]
    repeat_failed: usize,
    /// Print the names of the groups and exit
    #[arg(long)]
    list: bool,
    /// Run only cases whose name (`group/case`) contains one of these
    filter: Vec<String>,
}

/// A group of cases that share an environment.
type Group = (&'static str, fn(&mut Cases) -> Result<()>);

/// All groups, in running order.
const GROUPS: &[Group] = &[
    ("kernel", kernel::run),
    ("versions", versions::run),
    ("rules", rules::run),
    ("exemption", exemption::run),
    ("tc", exemption::by_tc),
    ("mesh-settings", mesh_settings::run),
    ("families", families::run),
    ("multipath", multipath::run),
    ("envoy", envoy::run),
    ("http", http::run),
    ("ports", ports::run),
    ("hooks", hooks::run),
    ("rewritten", rewritten::run),
    ("relays", relays::run),
    ("observe", observe::run),
    ("live-settings", settings::run),
    ("identity", identity::run),
    ("life", life::run),
    ("kubelet-restart", kubelet_restart::run),
    ("daemons", daemons::run),
    ("robust", robust::run),
    ("privileges", privileges::run),
    ("sandbox", sandbox::run),
    ("hostile", hostile::run),
    ("neighbours", neighbours::run),
    ("own-redirects", own_redirects::run),
    ("attacks", attacks::run),
    ("hung", hung::run),
    ("source", source::run),
    ("command-line", command_line::run),
    ("explain", explain::run),
    ("admin", admin::run),
    ("demo", demo::run),
    ("locate", locate::run),
    ("node", node::run),
    ("webhook", webhook::run),
];

/// Runs the selected cases.
///
/// # Errors
/// When a case failed, or ctrl-C was pressed.
pub fn main(args: &Args) -> Result<()> {
    if args.list {
        for (name, _) in GROUPS {
            println!("{name}");
        }
        return Ok(());
    }
    interrupt::catch()?;
    for removed in run::cleanup_stale()? {
        println!("removed leftovers of a killed run: {removed}");
    }
    let started = Instant::now();
    let mut cases = Cases::new(args.filter.clone(), args.daemon.clone())
        .each_lasting(args.lasting.map(Duration::from_secs))
        .with_promtool(args.promtool.clone())
        .with_envoy(args.envoy.clone().or_else(envoy::installed));
    run_groups(&mut cases)?;
    if cases.may_be_repeated(args.repeat_failed) {
        println!("\nrepeating {} failed cases", cases.failed());
        let mut repeated = cases.only_failed();
        run_groups(&mut repeated)?;
        cases.add_repeated(repeated);
    }
    cases.summary(started.elapsed());
    if cases.failed() > 0 {
        bail!("{} cases failed", cases.failed());
    }
    if cases.passed() == 0 {
        bail!("no case ran: {:?} selects none", args.filter);
    }
    Ok(())
}

fn run_groups(cases: &mut Cases) -> Result<()> {
    for (name, group) in GROUPS {
        if !cases.wants_group(name) {
            continue;
        }
        interrupt::check()?;
        cases.group(name, group);
    }
    Ok(())
}
