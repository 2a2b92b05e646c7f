//! The admin server: metrics match the documentation, and each listener serves only its paths.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cases::Cases;
use super::env::{Env, HANDLER_PATH};
use super::sample_pod::{self, HTTP};
use crate::daemon::{Daemon, DaemonSpec};
use crate::kubelet::Probe;
use crate::netns::NetNs;
use crate::pace;
use crate::promtool;
use crate::wait;

const SOON: Duration = Duration::from_secs(10);
const BY_PROMTOOL: &str = "metrics-are-valid-to-promtool";
const METRICS: &str = include_str!("../../../docs/metrics.md");

pub fn run(cases: &mut Cases) -> Result<()> {
    // The settings file does not exist, but its metrics do.
    let settings = "--settings=/run/probe-handler-testbed/no-settings.yaml";
    let env = Env::start(cases, &[HANDLER_PATH, settings])?;
    cases.case("metrics-are-as-documented", || metrics(&env));
    match cases.promtool().map(Path::to_owned) {
        Some(promtool) => cases.case(BY_PROMTOOL, || valid(&env, &promtool)),
        None => cases.skip(BY_PROMTOOL, "no promtool was given (--promtool)"),
    }
    cases.case("debug-only-from-loopback", || debug(&env));
    Ok(())
}

/// The text format that is not OpenMetrics, which is all that promtool 2 reads.
fn valid(env: &Env, promtool: &Path) -> Result<()> {
    let (status, text) = env.daemon.get_as("/metrics", "text/plain")?;
    ensure!(status == 200, "{status}: {text}");
    promtool::check_metrics(promtool, &text)
}

/// The names in the table of docs/metrics.md. The metrics of the Kubernetes source have their own table and
/// do not exist with manifests from a directory.
fn documented() -> BTreeSet<String> {
    let mut kubernetes = false;
    METRICS
        .lines()
        .filter(|line| {
            kubernetes |= line.starts_with("With `--pods kube` there are also");
            kubernetes &= !line.starts_with("Events of");
            !kubernetes
        })
        .filter_map(|line| line.strip_prefix("| `probe_handler_"))
        .filter_map(|rest| rest.split_once('`'))
        .map(|(name, _)| format!("probe_handler_{name}"))
        .collect()
}

fn metrics(env: &Env) -> Result<()> {
    let pod = env.pod(sample_pod::pod("counted"))?;
    let ip = pod.ns.ipv4();
    sample_pod::check_verdicts(&env.kubelet, ip.into())?;
    let _relayed = env.fails(&Probe::http(ip, HTTP, "/undeclared"))?;
    let scrape = env.daemon.metrics()?;
    let names: BTreeSet<String> = scrape
        .samples
        .iter()
        .filter(|sample| !sample.name.starts_with("process_"))
        .map(|sample| {
            let name = sample.name.as_str();
            let histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix));
            histogram.unwrap_or(name).to_owned()
        })
        .collect();
    let mut documented = documented();
    // This metric has series only once a probe would change: group `observe` checks them.
    ensure!(documented.remove("probe_handler_would_change_total"));
    ensure!(documented.len() > 8, "docs/metrics.md has no table");
    ensure!(
        names == documented,
        "not documented: {:?}; documented only: {:?}",
        names.difference(&documented).collect::<Vec<_>>(),
        documented.difference(&names).collect::<Vec<_>>()
    );
    for (name, labels, least) in [
        ("probe_handler_attached", &[][..], 1.0),
        ("probe_handler_endpoints", &[], 8.0),
        (
            "probe_handler_pods",
            &[("mesh", "istio"), ("state", "serving")],
            1.0,
        ),
        (
            "probe_handler_probes_total",
            &[
                ("pod", "counted"),
                ("container", "web"),
                ("probe", "liveness"),
                ("result", "success"),
            ],
            1.0,
        ),
        (
            "probe_handler_probe_duration_seconds_count",
            &[("pod", "counted"), ("container", "web")],
            2.0,
        ),
        (
            "probe_handler_relayed_total",
            &[("reason", "undeclared")],
            1.0,
        ),
        (
            "probe_handler_kernel_connections_total",
            &[("event", "redirected")],
            5.0,
        ),
        (
            "probe_handler_kernel_connections_total",
            &[("event", "refused")],
            1.0,
        ),
    ] {
        let value = scrape.sum(name, labels);
        ensure!(value >= least, "{name} {labels:?} is {value}");
    }
    let series = |scrape: &crate::metrics::Scrape| {
        let of_pod = |pod: &String| pod == "counted";
        scrape
            .samples
            .iter()
            .filter(|sample| sample.labels.get("pod").is_some_and(of_pod))
            .count()
    };
    ensure!(series(&scrape) > 0, "the pod has no series");
    drop(pod);
    wait::until("the pod's series to go with the pod", SOON, || {
        (series(&env.daemon.metrics().ok()?) == 0).then_some(())
    })
}

/// A request over TCP; returns status and body.
fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, pace::stretch(SOON))?;
    stream.set_read_timeout(Some(pace::stretch(SOON)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    let _length = stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn debug(env: &Env) -> Result<()> {
    // The node's own address on this run's veth pairs, not loopback.
    let pod = NetNs::new(&env.run, "neighbour")?;
    let (node, _) = env.run.node_ips();
    let daemon = DaemonSpec::new("admin")
        .program(Some(env.daemon.program()))
        .kubelet_cgroup(&env.cgroup)
        .admin_addr("0.0.0.0:0")
        .start(&env.run)?;
    let port = admin_port(&daemon)?;
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let from_outside = |path: &str| -> Result<String> {
        // From the pod: what any client in the cluster may read.
        pod.run(|| get(SocketAddr::new(IpAddr::V4(node), port), path))
    };
    for path in ["/healthz", "/readyz", "/metrics"] {
        for answer in [get(loopback, path)?, from_outside(path)?] {
            ensure!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        }
    }
    for path in ["/debug/status", "/debug/config", "/status"] {
        let answer = get(loopback, path)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        let answer = from_outside(path)?;
        ensure!(answer.starts_with("HTTP/1.1 403"), "{path}: {answer}");
        ensure!(!answer.contains("cgroup"), "it tells: {answer}");
    }
    Ok(())
}

/// Parses the log line with the listening addresses.
fn admin_port(daemon: &Daemon) -> Result<u16> {
    const SAID: &str = " admin=0.0.0.0:";
    let log = daemon.wait_logged(&[SAID])?;
    let (_, rest) = log
        .split_once(SAID)
        .context("no admin address in the log")?;
    let (port, _) = rest.split_once(' ').context("no admin port in the log")?;
    Ok(port.parse()?)
}
