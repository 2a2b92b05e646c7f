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

use crate::bpf::Map;
use crate::cgroup::Cgroup;
use crate::daemon::{Daemon, DaemonSpec};
use crate::kubelet::Kubelet;
use crate::node::Node;
use crate::run::Run;
use crate::table::render;
use light_pod::Light;
use schedule::Tally;

const GRACE: Duration = Duration::from_secs(30);

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

fn endpoints(daemon: &Daemon) -> Result<Map> {
    Map::held_by(daemon.pid(), "ENDPOINTS")
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
