//! The parts of the benchmark, and those that measure single probes and the daemon's memory.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::bpf::Statistics;
use crate::many_pods::ManyPods;
use crate::prober::{Prober, Target};
use crate::{bpf, node, process, webhook};
use testbed::app::AppSpec;
use testbed::app::tls::Certificate;
use testbed::cgroup::Cgroup;
use testbed::daemon::{Daemon, DaemonSpec};
use testbed::interrupt;
use testbed::kubelet::{Kubelet, Probe};
use testbed::pod::{Pod, PodSpec};
use testbed::rules::RuleSet;
use testbed::run::Run;
use testbed::table::render;

const HTTP: u16 = 8080;
const HTTPS: u16 = 8443;
const GRPC: u16 = 9090;
const OPEN: u16 = 5432;
const CLOSED: u16 = 5433;
const PILOT_AGENT: u16 = 15020;
const HEALTHY: &str = "/healthy";
/// The source address that Istio's rules do not redirect.
const PASSTHROUGH: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
const REWRITTEN: &str = "/app-health/web/livez";
const GRACE: Duration = Duration::from_secs(10);
/// Samples discarded before each measurement.
const WARM_UP: usize = 50;
/// Number of parts of a measurement whose result is a mean.
const BATCHES: usize = 20;

/// Options of the benchmark.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The daemon's program [default: probe-handler in the directory of this program]
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Run a short version: a tenth of the samples, fewer than a thousand pods, a few seconds of churn
    #[arg(long)]
    quick: bool,
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
            probes(args, &run, &cgroup, &prober)?;
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

fn daemon(args: &Args, run: &Run, cgroup: &Cgroup, name: &str) -> Result<Daemon> {
    DaemonSpec::new(name)
        .program(args.daemon.as_deref())
        .kubelet_cgroup(cgroup)
        .start(run)
}

fn probes(args: &Args, run: &Run, cgroup: &Cgroup, prober: &Prober) -> Result<()> {
    let plain = pod(run, "plain", RuleSet::None)?;
    let istio = pod(run, "istio", RuleSet::IstioRedirect)?;
    let mut ours = pod(run, "ours", RuleSet::IstioRedirect)?;
    let mut daemon = daemon(args, run, cgroup, "daemon")?;
    daemon.serve(&mut ours)?;

    let rounds = if args.quick { 500 } else { 5_000 };
    let mut rows = Vec::new();
    http(prober, &plain, &ours, &istio, rounds, &mut rows)?;
    tcp(prober, &plain, &ours, rounds, &mut rows)?;
    let costs = costs(prober, &daemon, &plain, &ours, rounds)?;
    // Last, because its prober is another process, which the daemon from then on regards as the kubelet.
    spliced(run, cgroup, &plain, &ours, rounds / 10, &mut rows)?;
    let header = ["probe", "direct", "measured", "p99", "ratio", "aim"];
    println!("Probes, medians in µs; direct is the same app in a pod without a mesh:\n");
    print!("{}", render(header, &rows));

    println!("\nWhat they cost:\n");
    print!("{}", render(["what", "measured", "aim"], &costs));
    let _status = daemon.stop(GRACE)?;
    Ok(())
}

fn pod(run: &Run, name: &str, rules: RuleSet) -> Result<Pod> {
    let app = AppSpec::new()
        .http(HTTP)
        .https(HTTPS, Certificate::SelfSigned)
        .grpc(GRPC)
        .tcp(OPEN);
    let probed = |name: &str, probe| json!({"name": name, "image": "app", "livenessProbe": probe});
    let http = |port: u16, scheme: &str| json!({"httpGet": {"path": HEALTHY, "port": port, "scheme": scheme}});
    let tcp = |port: u16| json!({"tcpSocket": {"port": port}});
    PodSpec::new(name)
        .rules(rules)
        .app(app)
        .container(probed("web", http(HTTP, "HTTP")))
        .container(probed("web-tls", http(HTTPS, "HTTPS")))
        .container(probed("api", json!({"grpc": {"port": GRPC}})))
        .container(probed("db", tcp(OPEN)))
        .container(probed("gone", tcp(CLOSED)))
        .istio_prober(REWRITTEN, http(HTTP, "HTTP"))
        .start(run)
        .with_context(|| format!("pod {name}"))
}

type Row = [String; 6];

/// HTTP on each path. Also the parts of a probe through a handler on the node, one after the other and without a handler:
/// one connection on loopback, and one within the pod that bypasses the mesh's rules.
fn http(
    prober: &Prober,
    plain: &Pod,
    ours: &Pod,
    istio: &Pod,
    rounds: usize,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let target = |pod: &Pod, port, path: &str| Target::Http {
        address: at(pod, port),
        path: path.to_owned(),
    };
    let targets = [
        target(plain, HTTP, HEALTHY),
        target(ours, HTTP, HEALTHY),
        target(istio, PILOT_AGENT, REWRITTEN),
        inside(plain, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST),
        inside(ours, PASSTHROUGH, ours.ns.ipv4()),
    ];
    let _warm = prober.measure(targets.clone(), WARM_UP)?;
    let [mut direct, mut ours, mut istio, loopback, in_pod] = prober.measure(targets, rounds)?;
    let mut both: Vec<u64> = loopback.iter().zip(&in_pod).map(|(a, b)| a + b).collect();
    rows.push(row("HTTP", &mut direct, &mut ours, "at most 1.4"));
    rows.push(row(
        "HTTP, Istio's rewriting",
        &mut direct,
        &mut istio,
        "(to compare)",
    ));
    rows.push(row(
        "HTTP, two connections alone",
        &mut direct,
        &mut both,
        "(to compare)",
    ));
    Ok(())
}

/// The app of `pod`, probed from `source` in its own network namespace.
fn inside(pod: &Pod, source: Ipv4Addr, address: Ipv4Addr) -> Target {
    Target::HttpInside {
        netns: pod.ns.path(),
        source: source.into(),
        address: (address, HTTP).into(),
        path: HEALTHY.to_owned(),
    }
}

fn tcp(prober: &Prober, plain: &Pod, ours: &Pod, rounds: usize, rows: &mut Vec<Row>) -> Result<()> {
    let targets = [
        Target::Open {
            address: at(plain, OPEN),
        },
        Target::Open {
            address: at(ours, OPEN),
        },
        Target::Closed {
            address: at(ours, CLOSED),
        },
    ];
    let _warm = prober.measure(targets.clone(), WARM_UP)?;
    let [mut direct, mut open, mut closed] = prober.measure(targets, rounds)?;
    rows.push(row("TCP, open port", &mut direct, &mut open, "at most 1.0"));
    rows.push(row(
        "TCP, closed port",
        &mut direct,
        &mut closed,
        "at most 0.1",
    ));
    Ok(())
}

/// HTTPS and gRPC, which need a larger client: the stand-in kubelet's, which uses more time itself. Also HTTP
/// with that client, for comparison.
fn spliced(
    run: &Run,
    cgroup: &Cgroup,
    plain: &Pod,
    ours: &Pod,
    rounds: usize,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let kubelet = Kubelet::start(run, cgroup, "kubelet")?;
    let http = |pod: &Pod| Probe::http(pod.ns.ipv4(), HTTP, HEALTHY);
    let https = |pod: &Pod| Probe::https(pod.ns.ipv4(), HTTPS, HEALTHY);
    let grpc = |pod: &Pod| Probe::grpc(pod.ns.ipv4(), GRPC, "");
    for (what, probes) in [
        ("HTTP, stand-in kubelet", [http(plain), http(ours)]),
        ("HTTPS, spliced", [https(plain), https(ours)]),
        ("gRPC, spliced", [grpc(plain), grpc(ours)]),
    ] {
        let mut samples = [Vec::new(), Vec::new()];
        for round in 0..WARM_UP + rounds {
            for (probe, samples) in probes.iter().zip(&mut samples) {
                let result = kubelet.probe(probe)?;
                anyhow::ensure!(result.passed(), "{what}: {}", result.message);
                if round >= WARM_UP {
                    samples.push(u64::try_from(result.latency.as_nanos())?);
                }
            }
        }
        let [mut direct, mut ours] = samples;
        rows.push(row(what, &mut direct, &mut ours, ""));
    }
    Ok(())
}

fn costs(
    prober: &Prober,
    daemon: &Daemon,
    plain: &Pod,
    ours: &Pod,
    rounds: usize,
) -> Result<Vec<[String; 3]>> {
    let probe = Target::Http {
        address: at(ours, HTTP),
        path: HEALTHY.to_owned(),
    };
    let before = process::cpu_ns(daemon.pid())?;
    let _samples = prober.measure([probe.clone()], rounds)?;
    let cpu = process::cpu_ns(daemon.pid())? - before;

    let _keeping = Statistics::enable()?;
    let connect4 = |target: Target| -> Result<u64> {
        // The median of means, because a single interrupt of a millisecond would change the mean of all.
        let mut means = Vec::with_capacity(BATCHES);
        for _ in 0..BATCHES {
            let before = bpf::sock_addr_programs(daemon.pid())?;
            let _samples = prober.measure([target.clone()], rounds / BATCHES)?;
            let after = bpf::sock_addr_programs(daemon.pid())?;
            means.push(bpf::mean(&before, &after, (rounds / BATCHES) as u64)?);
        }
        Ok(percentile(&mut means, 50))
    };
    let foreign = connect4(Target::Open {
        address: at(plain, OPEN),
    })?;
    let redirected = connect4(probe)?;
    let refused = connect4(Target::Closed {
        address: at(ours, CLOSED),
    })?;
    let row = |what: &str, measured: String, aim: &str| [what.to_owned(), measured, aim.to_owned()];
    let us = cpu as f64 / 1e3 / rounds as f64;
    Ok(vec![
        row("daemon's CPU per HTTP probe", format!("{us:.1} µs"), ""),
        row(
            "connect4, not ours",
            format!("{foreign} ns"),
            "under 300 ns",
        ),
        row("connect4, redirected", format!("{redirected} ns"), ""),
        row("connect4, refused", format!("{refused} ns"), ""),
    ])
}

fn memory(args: &Args, run: &Run, cgroup: &Cgroup, prober: &Prober) -> Result<()> {
    let mut daemon = daemon(args, run, cgroup, "crowd")?;
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

fn at(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(pod.ns.ipv4()), port)
}

fn row(what: &str, direct: &mut [u64], measured: &mut [u64], aim: &str) -> Row {
    let [direct, median] = [percentile(direct, 50), percentile(measured, 50)];
    let p99 = percentile(measured, 99);
    let us = |ns: u64| format!("{:.1}", ns as f64 / 1e3);
    [
        what.to_owned(),
        us(direct),
        us(median),
        us(p99),
        format!("{:.2}", median as f64 / direct as f64),
        aim.to_owned(),
    ]
}

/// The sample below which `percent` of all samples are; 0 where there are none.
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
