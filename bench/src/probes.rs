//! The cost of one probe: through the handler, and on the kernel path.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::bpf::{self, Statistics};
use crate::measure::{Args, GRACE, WARM_UP, percentile, start_daemon};
use crate::prober::{Prober, Target};
use crate::process;
use testbed::app::AppSpec;
use testbed::app::tls::Certificate;
use testbed::cgroup::Cgroup;
use testbed::daemon::Daemon;
use testbed::kubelet::{Kubelet, Probe};
use testbed::pod::{Pod, PodSpec};
use testbed::rules::RuleSet;
use testbed::run::Run;
use testbed::table::render;
use testbed::{command, wait};

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
const SOON: Duration = Duration::from_secs(5);
/// Number of parts of a measurement whose result is a mean.
const BATCHES: usize = 20;

/// The measured pods, which differ only in their rules.
struct Pods {
    /// Without a mesh.
    plain: Pod,
    /// A pod in a mesh, served by the daemon.
    served: Pod,
    /// A pod in a mesh, not served.
    istio: Pod,
    /// A pod in a mesh whose own rules exclude the app's ports.
    excluded: Pod,
}

struct Bench<'a> {
    run: &'a Run,
    cgroup: &'a Cgroup,
    prober: &'a Prober,
    pods: Pods,
    rounds: usize,
}

type Row = [String; 6];
type Cost = [String; 3];

/// Measures both paths and prints the results.
///
/// # Errors
/// Those of [`crate::measure::main`].
pub fn probes(args: &Args, run: &Run, cgroup: &Cgroup, prober: &Prober) -> Result<()> {
    let mut bench = Bench {
        run,
        cgroup,
        prober,
        pods: Pods::start(run)?,
        rounds: if args.quick { 500 } else { 5_000 },
    };
    // Measures in this order, because the kernel path outlives its daemon.
    let mut daemon = start_daemon(args, run, cgroup, "handler-path", &["--kernel-path=false"])?;
    daemon.serve(&mut bench.pods.served)?;
    let mut rows = bench.http_by_handler()?;
    rows.extend(bench.tcp_by_handler()?);
    let costs = bench.costs_of_handler(&daemon)?;
    // Measured last, because its prober is another process, which the daemon then treats as the kubelet.
    rows.extend(bench.with_kubelet("spliced", "")?);
    print("through the handler", &rows, &costs);
    let _status = daemon.stop(GRACE)?;

    let kernel = ["--kernel-path=true", "--http=kernel"];
    let mut daemon = start_daemon(args, run, cgroup, "kernel-path", &kernel)?;
    daemon.serve(&mut bench.pods.served)?;
    wait::until("the kernel path", SOON, || {
        let status = daemon.pod_status(bench.pods.served.name()).ok()??;
        (status["path"] == "kernel").then_some(())
    })?;
    let mut rows = bench.http_by_kernel()?;
    rows.extend(bench.tcp_by_kernel()?);
    let costs = bench.costs_of_kernel_path(&daemon)?;
    rows.extend(bench.with_kubelet("kernel path", "at most 1.10")?);
    print("on the kernel path", &rows, &costs);
    let _status = daemon.stop(GRACE)?;
    Ok(())
}

fn print(how: &str, rows: &[Row], costs: &[Cost]) {
    println!("\nProbes {how}, medians in µs; direct is the same app in a pod without a mesh:\n");
    let header = ["probe", "direct", "measured", "p99", "ratio", "aim"];
    print!("{}", render(header, rows));
    println!("\nWhat probes {how} cost:\n");
    print!("{}", render(["what", "measured", "aim"], costs));
}

impl Pods {
    fn start(run: &Run) -> Result<Self> {
        let excluded = pod(run, "excluded", RuleSet::IstioRedirect)?;
        // As istio-init does for annotation excludeInboundPorts.
        for port in [HTTP, OPEN] {
            let rule = format!("-t nat -I ISTIO_INBOUND 1 -p tcp --dport {port} -j RETURN");
            let words: Vec<&str> = rule.split(' ').collect();
            let _output = excluded
                .ns
                .run(|| command::run("iptables-nft", &words, ""))?;
        }
        Ok(Self {
            plain: pod(run, "plain", RuleSet::None)?,
            served: pod(run, "served", RuleSet::IstioRedirect)?,
            istio: pod(run, "istio", RuleSet::IstioRedirect)?,
            excluded,
        })
    }
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

impl Bench<'_> {
    /// The samples of each target, after a warm-up.
    fn samples<const N: usize>(&self, targets: [Target; N]) -> Result<[Vec<u64>; N]> {
        let _warm = self.prober.measure(targets.clone(), WARM_UP)?;
        self.prober.measure(targets, self.rounds)
    }

    /// Also measures the two connections of a probe through a handler, one after the other and without a handler: one
    /// connection on loopback, and one within the pod that bypasses the mesh's rules.
    fn http_by_handler(&self) -> Result<Vec<Row>> {
        let Pods {
            plain,
            served,
            istio,
            ..
        } = &self.pods;
        let [mut direct, mut ours, mut istio, loopback, in_pod] = self.samples([
            http(plain, HTTP, HEALTHY),
            http(served, HTTP, HEALTHY),
            http(istio, PILOT_AGENT, REWRITTEN),
            inside(plain, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST),
            inside(served, PASSTHROUGH, served.ns.ipv4()),
        ])?;
        let mut both: Vec<u64> = loopback.iter().zip(&in_pod).map(|(a, b)| a + b).collect();
        let compare = "(to compare)";
        Ok(vec![
            row("HTTP", &mut direct, &mut ours, "at most 1.4"),
            row("HTTP, Istio's rewriting", &mut direct, &mut istio, compare),
            row(
                "HTTP, two connections alone",
                &mut direct,
                &mut both,
                compare,
            ),
        ])
    }

    fn tcp_by_handler(&self) -> Result<Vec<Row>> {
        let Pods { plain, served, .. } = &self.pods;
        let [mut direct, mut ours, mut closed] =
            self.samples([open(plain), open(served), closed(served)])?;
        Ok(vec![
            row("TCP, open port", &mut direct, &mut ours, "at most 1.0"),
            row("TCP, closed port", &mut direct, &mut closed, "at most 0.1"),
        ])
    }

    fn http_by_kernel(&self) -> Result<Vec<Row>> {
        let Pods {
            plain,
            served,
            excluded,
            ..
        } = &self.pods;
        let [mut direct, mut ours, mut excluded] = self.samples([
            http(plain, HTTP, HEALTHY),
            http(served, HTTP, HEALTHY),
            http(excluded, HTTP, HEALTHY),
        ])?;
        Ok(vec![
            row("HTTP", &mut direct, &mut ours, "at most 1.10"),
            row(
                "HTTP, against a port that the mesh excludes",
                &mut excluded,
                &mut ours,
                "at most 1.04",
            ),
        ])
    }

    fn tcp_by_kernel(&self) -> Result<Vec<Row>> {
        let Pods {
            plain,
            served,
            excluded,
            ..
        } = &self.pods;
        let [
            mut direct,
            mut ours,
            mut excluded,
            mut refused,
            mut refused_by_ours,
        ] = self.samples([
            open(plain),
            open(served),
            open(excluded),
            closed(plain),
            closed(served),
        ])?;
        Ok(vec![
            row("TCP, open port", &mut direct, &mut ours, "at most 1.15"),
            row(
                "TCP, against a port that the mesh excludes",
                &mut excluded,
                &mut ours,
                "at most 1.04",
            ),
            row(
                "TCP, closed port against a direct refusal",
                &mut refused,
                &mut refused_by_ours,
                "at most 1.3",
            ),
        ])
    }

    /// HTTPS and gRPC, which need a larger client: the stand-in kubelet's, which uses more time itself. Also HTTP with that
    /// client, for comparison.
    fn with_kubelet(&self, how: &str, aim: &str) -> Result<Vec<Row>> {
        let Pods { plain, served, .. } = &self.pods;
        let kubelet = Kubelet::start(self.run, self.cgroup, "kubelet")?;
        let http = |pod: &Pod| Probe::http(pod.ns.ipv4(), HTTP, HEALTHY);
        let https = |pod: &Pod| Probe::https(pod.ns.ipv4(), HTTPS, HEALTHY);
        let grpc = |pod: &Pod| Probe::grpc(pod.ns.ipv4(), GRPC, "");
        let mut rows = Vec::new();
        for (what, probes, aim) in [
            (
                "HTTP, stand-in kubelet".to_owned(),
                [http(plain), http(served)],
                "",
            ),
            (format!("HTTPS, {how}"), [https(plain), https(served)], aim),
            (format!("gRPC, {how}"), [grpc(plain), grpc(served)], aim),
        ] {
            let mut samples = [Vec::new(), Vec::new()];
            for round in 0..WARM_UP + self.rounds / 10 {
                for (probe, samples) in probes.iter().zip(&mut samples) {
                    let result = kubelet.probe(probe)?;
                    ensure!(result.passed(), "{what}: {}", result.message);
                    if round >= WARM_UP {
                        samples.push(u64::try_from(result.latency.as_nanos())?);
                    }
                }
            }
            let [mut direct, mut ours] = samples;
            rows.push(row(&what, &mut direct, &mut ours, aim));
        }
        Ok(rows)
    }

    fn costs_of_handler(&self, daemon: &Daemon) -> Result<Vec<Cost>> {
        let Pods { plain, served, .. } = &self.pods;
        let probe = http(served, HTTP, HEALTHY);
        let cpu = self.daemons_time(daemon, &probe)?;
        let _keeping = Statistics::enable()?;
        Ok(vec![
            cost("daemon's CPU per HTTP probe", cpu, ""),
            cost(
                "connect4, not ours",
                self.connect4(daemon, &open(plain))?,
                "under 300 ns",
            ),
            cost("connect4, redirected", self.connect4(daemon, &probe)?, ""),
            cost(
                "connect4, refused",
                self.connect4(daemon, &closed(served))?,
                "",
            ),
        ])
    }

    fn costs_of_kernel_path(&self, daemon: &Daemon) -> Result<Vec<Cost>> {
        let Pods { plain, served, .. } = &self.pods;
        let http = http(served, HTTP, HEALTHY);
        let by_http = self.daemons_time(daemon, &http)?;
        let by_tcp = self.daemons_time(daemon, &open(served))?;
        let _keeping = Statistics::enable()?;
        Ok(vec![
            cost("daemon's CPU per HTTP probe", by_http, "at most 5 µs"),
            cost("daemon's CPU per TCP probe", by_tcp, "at most 5 µs"),
            cost(
                "connect4, not ours",
                self.connect4(daemon, &open(plain))?,
                "at most 150 ns",
            ),
            cost("connect4, exempt", self.connect4(daemon, &http)?, ""),
            cost(
                "answer, a packet of no probe",
                self.program(daemon, bpf::CGROUP_SKB, &open(plain))?,
                "",
            ),
            cost(
                "answer, a packet of an HTTP probe",
                self.program(daemon, bpf::CGROUP_SKB, &http)?,
                "",
            ),
        ])
    }

    /// The daemon's processor time per probe.
    fn daemons_time(&self, daemon: &Daemon, target: &Target) -> Result<u64> {
        let before = process::cpu_ns(daemon.pid())?;
        let _samples = self.prober.measure([target.clone()], self.rounds)?;
        Ok((process::cpu_ns(daemon.pid())? - before) / self.rounds as u64)
    }

    /// The run time of `connect4` per probe.
    fn connect4(&self, daemon: &Daemon, target: &Target) -> Result<u64> {
        self.program(daemon, bpf::SOCK_ADDR, target)
    }

    /// The time of one run of the program of type `kind`: the median of means, because a single interrupt of a millisecond
    /// would change the mean of all.
    fn program(&self, daemon: &Daemon, kind: u64, target: &Target) -> Result<u64> {
        let mut means = Vec::with_capacity(BATCHES);
        let part = self.rounds / BATCHES;
        for _ in 0..BATCHES {
            let before = bpf::programs(daemon.pid(), kind)?;
            let _samples = self.prober.measure([target.clone()], part)?;
            let after = bpf::programs(daemon.pid(), kind)?;
            means.push(bpf::mean(&before, &after, part as u64)?);
        }
        Ok(percentile(&mut means, 50))
    }
}

fn http(pod: &Pod, port: u16, path: &str) -> Target {
    Target::Http {
        address: at(pod, port),
        path: path.to_owned(),
    }
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

fn open(pod: &Pod) -> Target {
    Target::Open {
        address: at(pod, OPEN),
    }
}

fn closed(pod: &Pod) -> Target {
    Target::Closed {
        address: at(pod, CLOSED),
    }
}

fn at(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(pod.ns.ipv4()), port)
}

/// A row of times in nanoseconds.
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

fn cost(what: &str, nanoseconds: u64, aim: &str) -> Cost {
    let shown = match nanoseconds {
        0..10_000 => format!("{nanoseconds} ns"),
        _ => format!("{:.1} µs", nanoseconds as f64 / 1e3),
    };
    [what.to_owned(), shown, aim.to_owned()]
}
