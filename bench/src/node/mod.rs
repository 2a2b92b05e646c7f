//! Benchmarks on a node: pods that start, one by one and at once; churn of a thousand pods; reused addresses;
//! a daemon that starts, and one that takes over.
//!
//! Times are printed and have no limits. A wrong verdict is a failure: a running pod that was reported as
//! unhealthy, or an answer from another pod.

mod churn;
mod light_pod;
mod load;
mod restart;
mod reuse;
mod schedule;
mod starts;
mod upgrade;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};

use light_pod::{Light, LightPod};
use schedule::{Schedule, Tally};
use testbed::bpf::Map;
use testbed::cgroup::Cgroup;
use testbed::daemon::{Daemon, DaemonSpec};
use testbed::kubelet::Kubelet;
use testbed::node::Node;
use testbed::rules::RuleSet;
use testbed::run::Run;
use testbed::table::render;
use testbed::{interrupt, wait};

const GRACE: Duration = Duration::from_secs(30);
/// Time limit until all pods are served.
const SERVED: Duration = Duration::from_secs(60);
/// Probe period of pods that are observed closely.
const PERIOD: Duration = Duration::from_secs(1);

/// The shared environment. Fields drop in this order.
struct Bench {
    kubelet: Arc<Kubelet>,
    light: Light,
    cgroup: Cgroup,
    run: Arc<Run>,
    program: Option<PathBuf>,
    quick: bool,
    rows: Vec<[String; 3]>,
    wrong: Vec<String>,
}

/// Runs the benchmarks and prints the results.
pub(super) fn run(program: Option<&Path>, quick: bool) -> Result<()> {
    let mut bench = Bench::new(program, quick)?;
    starts::run(&mut bench)?;
    reuse::run(&mut bench)?;
    let (pods, daemon) = upgrade::run(&mut bench)?;
    churn::run(&mut bench, pods, daemon)?;
    bench.print()
}

/// Measures the restart of a killed daemon and prints the results.
pub(super) fn run_restart(program: Option<&Path>, quick: bool) -> Result<()> {
    let mut bench = Bench::new(program, quick)?;
    restart::run(&mut bench)?;
    bench.print()
}

/// Counts wrong verdicts under load and prints the results.
pub(super) fn run_load(program: Option<&Path>, quick: bool) -> Result<()> {
    let mut bench = Bench::new(program, quick)?;
    load::run(&mut bench)?;
    bench.print()
}

impl Bench {
    fn new(program: Option<&Path>, quick: bool) -> Result<Self> {
        let run = Arc::new(Run::new()?);
        let cgroup = Cgroup::new(&run, "kubelet")?;
        Ok(Self {
            kubelet: Arc::new(Kubelet::start(&run, &cgroup, "kubelet")?),
            light: Light::new(Node::start(&run, "bench")?)?,
            cgroup,
            run,
            program: program.map(Path::to_path_buf),
            quick,
            rows: Vec::new(),
            wrong: Vec::new(),
        })
    }

    fn print(&self) -> Result<()> {
        println!("\nA node:\n");
        print!("{}", render(["what", "measured", "aim"], &self.rows));
        if !self.wrong.is_empty() {
            bail!("wrong verdicts:\n{}", self.wrong.join("\n"));
        }
        Ok(())
    }

    /// Running pods with Istio's rules.
    fn pods(&self, count: usize) -> Result<Vec<LightPod>> {
        let mut pods = Vec::with_capacity(count);
        for _ in 0..count {
            interrupt::check()?;
            pods.push(self.light.run(RuleSet::IstioNft)?);
        }
        Ok(pods)
    }

    /// Starts `probes` probes of each pod with a period of [`PERIOD`], spread over the period as on a real node.
    fn probed(&self, pods: &[LightPod], probes: u32) -> Result<Schedule> {
        let schedule = Schedule::start(&self.kubelet);
        let all = u32::try_from(pods.len())? * probes;
        for (index, pod) in (0..).zip(pods) {
            for probe in 0..probes {
                let delay = PERIOD * (index * probes + probe) / all;
                let _id = schedule.join(pod.probe()?, pod.status, PERIOD, delay);
            }
        }
        Ok(schedule)
    }

    /// Probes a pod until the result is correct.
    fn right_answer(&self, pod: &LightPod) -> Result<()> {
        let probe = pod.probe()?;
        wait::until("a right answer", SERVED, || {
            let result = self.kubelet.probe(&probe).ok()?;
            (result.status == Some(pod.status)).then_some(())
        })
    }

    fn spec(&self, name: &str) -> DaemonSpec {
        let spec = DaemonSpec::new(name)
            .program(self.program.as_deref())
            .kubelet_cgroup(&self.cgroup);
        self.light.node.serve(spec)
    }

    fn row(&mut self, what: &str, measured: impl Into<String>, aim: &str) {
        let measured = measured.into();
        eprintln!("{what}: {measured}");
        self.rows.push([what.to_owned(), measured, aim.to_owned()]);
    }

    /// Adds a row with the results of probes; counts wrong results.
    fn verdicts(&mut self, what: &str, tally: &Tally) {
        let measured = format!("{} of {} probes", tally.wrong, tally.made);
        self.row(&format!("{what}: wrong verdicts"), measured, "0");
        if tally.wrong > 0 {
            let examples = tally.examples.join("\n    ");
            self.wrong
                .push(format!("{what}: {}\n    {examples}", tally.wrong));
        }
    }
}

/// Waits until the endpoints of all pods exist.
fn all_served(daemon: &Daemon, pods: &[LightPod]) -> Result<()> {
    let map = endpoints(daemon)?;
    let addresses: Vec<_> = pods.iter().map(LightPod::address).collect::<Result<_>>()?;
    wait::until("all pods to be served", SERVED, || {
        let stands = |address| map.has(address).unwrap_or_default();
        addresses.iter().copied().all(stands).then_some(())
    })
}

fn endpoints(daemon: &Daemon) -> Result<Map> {
    Map::held_by(daemon.pid(), "ENDPOINTS")
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
