//! `testbed chaos`: pods, apps, sidecars, kubelet and daemon fail by a random schedule, while a stand-in kubelet probes all
//! pods. Compares each verdict with the result that plain Kubernetes would get at that moment.

mod judge;
mod node;
mod pods;
mod schedule;
mod world;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use self::judge::{Judgement, Kind, Span, Verdict};
use self::schedule::At;
use self::world::World;
use crate::kubelet::Outcome;
use crate::run::{self, Run};
use crate::table::render;
use crate::{interrupt, suite, wait};

/// The number of pairs of addresses, each with one pod at a time.
const PLACES: usize = 6;
/// How often the kubelet makes each probe.
const PERIOD: Duration = Duration::from_millis(60);

/// Options of `testbed chaos`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How long pods are probed
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Repeat the schedule of the run with this seed [default: a new one, which is printed]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// The daemon's program [default: probe-handler in the directory of this program]
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Envoy's program [default: the one that `cargo xtask setup` installed; without one all sidecars are stand-ins]
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
}

/// Makes a run and prints its result.
///
/// # Errors
/// When a verdict is wrong that docs do not leave out, or something can't be started.
pub fn main(args: &Args) -> Result<()> {
    interrupt::catch()?;
    for removed in run::cleanup_stale()? {
        println!("removed leftovers of a killed run: {removed}");
    }
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let envoy = args.envoy.clone().or_else(suite::installed_envoy);
    let result = run(
        seed,
        Duration::from_secs(args.minutes * 60),
        args.daemon.as_deref(),
        envoy.as_deref(),
    )?;
    result.print();
    result.check()
}

/// The result of a run.
#[derive(Debug)]
pub struct Report {
    judgement: Judgement,
    /// The actions before the first wrong verdict.
    actions: Vec<String>,
    /// Number of cgroups of past kubelets to which programs are still attached at the end.
    left: usize,
}

impl Report {
    /// Prints it as tables.
    pub fn print(&self) {
        let judgement = &self.judgement;
        println!(
            "{} verdicts while the app did not change; {} while it changed and {} of a prober that stood still do not count",
            judgement.judged, judgement.uncertain, judgement.stalled
        );
        println!("{} wrong", judgement.wrong());
        if self.left > 0 {
            println!(
                "programs are still attached to {} cgroups of past kubelets",
                self.left
            );
        }
        for (title, left_out) in [("wrong", false), ("wrong, and left out by docs", true)] {
            let causes = judge::Cause::ALL.into_iter();
            let rows: Vec<_> = causes
                .filter(|cause| cause.left_out() == left_out)
                .map(|cause| {
                    let wrong = judgement.causes.get(&cause).copied().unwrap_or_default();
                    let times = cause
                        .fault()
                        .map(|fault| judgement.faults(fault).to_string());
                    [
                        cause.to_string(),
                        times.unwrap_or_default(),
                        wrong.count.to_string(),
                        format!("{} ms", wrong.longest.as_millis()),
                    ]
                })
                .collect();
            println!(
                "\n{}",
                render([title, "times", "verdicts", "longest gap"], &rows)
            );
        }
        for example in &judgement.examples {
            println!("{example}");
        }
        if !self.actions.is_empty() {
            println!("before the first: {:#?}", self.actions);
        }
    }

    /// # Errors
    /// When verdicts are wrong that docs do not leave out, or when there are too few to mean something.
    pub fn check(&self) -> Result<()> {
        let wrong = self.judgement.wrong();
        ensure!(wrong == 0, "{wrong} verdicts are wrong");
        let judged = self.judgement.judged;
        ensure!(judged > 100, "only {judged} verdicts");
        Ok(())
    }
}

/// Makes a run of this duration.
///
/// # Errors
/// When something can't be started, or the run is interrupted.
pub fn run(
    seed: u64,
    duration: Duration,
    daemon: Option<&Path>,
    envoy: Option<&Path>,
) -> Result<Report> {
    println!("seed {seed}, {duration:?}, {PLACES} pods at a time");
    let run = Run::new()?;
    let manifests = run.dir().join("manifests");
    std::fs::create_dir_all(&manifests)?;
    let schedule = schedule::generate(seed, duration, PLACES);
    let (kubelet, cgroup) = node::kubelet(&run, 0)?;
    let world = World::new(PLACES, kubelet);
    let mut node = node::Node::start(&run, &world, daemon, &manifests, cgroup)?;
    let mut pods = pods::Pods::start(&run, &world, &manifests, envoy, PLACES)?;
    let ips = pods.ips();
    let begun = world.time();
    let outcome = thread::scope(|scope| {
        let world = &world;
        let mut probers = Vec::new();
        for (place, ips) in ips.into_iter().enumerate() {
            for kind in Kind::ALL {
                probers.push(scope.spawn(move || prober(world, place, ips, kind)));
            }
        }
        let of_pods = scope.spawn(|| {
            follow(world, begun, &schedule.pods, |(place, action)| {
                pods.act(place, action)
            })
        });
        let of_node = follow(world, begun, &schedule.node, |action| node.act(action));
        let of_pods = of_pods.join().map_err(|_| anyhow!("a thread panicked"));
        let rest = (begun + duration).saturating_sub(world.time());
        let waited = wait::pass(rest);
        world.end();
        for prober in probers {
            prober.join().map_err(|_| anyhow!("a prober panicked"))??;
        }
        of_node.and(of_pods?).and(waited)
    });
    outcome?;
    let (history, verdicts) = world.records();
    let judgement = judge::judge(&history, &verdicts);
    let first = judgement.first_wrong.map(|span| world.actions_before(span));
    let actions = first.unwrap_or_default();
    let (cgroups, left) = node.end()?;
    drop(pods);
    drop(world);
    drop(cgroups);
    Ok(Report {
        judgement,
        actions,
        left,
    })
}

/// Starts each action at its time, or as soon as the previous one has ended.
fn follow<T: Copy + std::fmt::Debug>(
    world: &World,
    begun: Duration,
    schedule: &[At<T>],
    mut act: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    for At { time, action } in schedule {
        wait::pass((begun + *time).saturating_sub(world.time()))?;
        let from = world.time();
        act(*action).with_context(|| format!("{action:?} at {time:?}"))?;
        world.action(from, format!("{action:?}"));
    }
    Ok(())
}

/// Makes one probe again and again, of both addresses in turn.
fn prober(world: &World, place: usize, ips: [IpAddr; 2], kind: Kind) -> Result<()> {
    for ip in ips.into_iter().cycle() {
        if world.has_ended() {
            break;
        }
        let from = world.time();
        let (kubelet, kubelet_since) = world.kubelet();
        if world.is_certain(place)
            // A kubelet that has ended returns no verdict.
            && let Ok(result) = kubelet.probe(&pods::probe(ip, kind))
            && result.outcome != Outcome::Discarded
        {
            world.verdict(Verdict {
                place,
                kind,
                span: Span {
                    from,
                    until: world.time(),
                },
                passed: result.passed(),
                status: result.status,
                kubelet_since,
            });
        }
        drop(kubelet);
        wait::pass((from + PERIOD).saturating_sub(world.time()))?;
    }
    Ok(())
}
