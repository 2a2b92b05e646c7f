//! The parts of the benchmark, and the daemon's memory.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::many_pods::ManyPods;
use crate::prober::Prober;
use crate::{node, probes, process, webhook};
use testbed::cgroup::Cgroup;
use testbed::daemon::{Daemon, DaemonSpec};
use testbed::interrupt;
use testbed::run::Run;
use testbed::table::render;

/// Deadline for the end of a daemon.
pub const GRACE: Duration = Duration::from_secs(10);
/// Samples discarded before each measurement.
pub const WARM_UP: usize = 50;

/// Options of the benchmark.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The daemon's program [default: probe-handler in the directory of this program]
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Run a short version: a tenth of the samples, fewer than a thousand pods, a few seconds of churn
    #[arg(long)]
    pub quick: bool,
    /// Run only this part
    #[arg(long, value_enum)]
    only: Option<Part>,
}

/// A part of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Probe latencies, processor time, eBPF programs.
    Probes,
    /// The daemon's memory.
    Memory,
    /// Pods that start, change and end on a node; replacement of the daemon.
    Node,
    /// Restart of a killed daemon on a node with many pods.
    Restart,
    /// Wrong verdicts under load: many probes, upgrades, checks in flight at the end, little processor time, a log that
    /// nobody reads.
    Load,
    /// The admission webhook.
    Webhook,
}

/// Runs the benchmarks and prints the results.
///
/// # Errors
/// When a probe or a verdict is wrong, something cannot be set up, or ctrl-C was pressed. A figure that misses its target
/// is not an error.
pub fn main(args: &Args) -> Result<()> {
    interrupt::catch()?;
    let wanted = |part| args.only.is_none_or(|only| only == part);
    if wanted(Part::Probes) || wanted(Part::Memory) {
        let run = Run::new()?;
        let cgroup = Cgroup::new(&run, "kubelet")?;
        let prober = Prober::start(&cgroup)?;
        if wanted(Part::Probes) {
            probes::probes(args, &run, &cgroup, &prober)?;
        }
        if wanted(Part::Memory) {
            memory(args, &run, &cgroup, &prober)?;
        }
    }
    if wanted(Part::Node) {
        node::run(args.daemon.as_deref(), args.quick)?;
    }
    if wanted(Part::Restart) {
        node::run_restart(args.daemon.as_deref(), args.quick)?;
    }
    if wanted(Part::Load) {
        node::run_load(args.daemon.as_deref(), args.quick)?;
    }
    if wanted(Part::Webhook) {
        webhook::webhook(&Run::new()?, args.daemon.as_deref(), args.quick)?;
    }
    Ok(())
}

/// Starts a daemon with additional arguments.
///
/// # Errors
/// Those of [`DaemonSpec::start`].
pub fn start_daemon(
    args: &Args,
    run: &Run,
    cgroup: &Cgroup,
    name: &str,
    more: &[&str],
) -> Result<Daemon> {
    let spec = DaemonSpec::new(name)
        .program(args.daemon.as_deref())
        .kubelet_cgroup(cgroup);
    more.iter().fold(spec, |spec, arg| spec.arg(arg)).start(run)
}

fn memory(args: &Args, run: &Run, cgroup: &Cgroup, prober: &Prober) -> Result<()> {
    let mut daemon = start_daemon(args, run, cgroup, "crowd", &[])?;
    let mut crowd = ManyPods::new()?;
    let counts: &[usize] = if args.quick {
        &[2, 250]
    } else {
        &[2, 250, 1_000]
    };
    let mut rows = Vec::new();
    for &count in counts {
        crowd.grow(run, &daemon, prober, count)?;
        let memory = process::memory(daemon.pid())?;
        let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
        rows.push([
            count.to_string(),
            mib(memory.rss),
            mib(memory.anonymous),
            mib(memory.pss),
            (if count == 250 { "16 MiB" } else { "" }).to_owned(),
        ]);
    }
    println!("\nThe daemon's memory, two probes a pod:\n");
    let header = ["pods", "resident", "of it anonymous", "proportional", "aim"];
    print!("{}", render(header, &rows));
    let _status = daemon.stop(GRACE)?;
    Ok(())
}

/// The sample below which `percent` of all samples are; 0 if there are none.
pub fn percentile(samples: &mut [u64], percent: usize) -> u64 {
    samples.sort_unstable();
    let index = samples.len() * percent / 100;
    samples.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn a_percentile_is_one_of_the_samples() {
        let mut samples: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(percentile(&mut samples, 50), 51);
        assert_eq!(percentile(&mut samples, 99), 100);
        assert_eq!(percentile(&mut [], 50), 0);
    }
}
