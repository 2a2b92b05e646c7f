//! `testbed demo`: shows the results of the kubelet's probes in a STRICT mesh, without and with
//! probe-handler, with real mesh rules, a sidecar and apps.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::app::tls::Certificate;
use crate::app::{AppSpec, Bind, Protocol};
use crate::cgroup::Cgroup;
use crate::daemon::{Daemon, DaemonSpec};
use crate::kubelet::{ControlSocket, Kubelet, Probe, ProbeResult};
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::run::Run;
use crate::table::render;
use crate::{interrupt, wait, worker};

const HTTP: u16 = 8080;
const HTTPS: u16 = 8443;
const GRPC: u16 = 9090;
const OPEN: u16 = 5432;
const CLOSED: u16 = 5433;
const GRACE: Duration = Duration::from_secs(10);

/// Options of `testbed demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The daemon's program [default: probe-handler in the directory of this program]
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Keep everything running until ctrl-C
    #[arg(long)]
    keep: bool,
}

/// Runs the demo and removes everything.
///
/// # Errors
/// When a result is wrong, something cannot be set up, or ctrl-C was pressed.
pub fn main(args: &Args) -> Result<()> {
    interrupt::catch()?;
    let run = Run::new()?;
    println!("Two pods with Istio's REDIRECT rules and a sidecar that accepts only mutual TLS:");
    let mut pods = [pod(&run, "shop")?, pod(&run, "ledger")?];
    for pod in &pods {
        println!("  {:<8} {}, {}", pod.name(), pod.ns.ipv4(), pod.ns.ipv6());
    }
    let cgroup = Cgroup::new(&run, "kubelet")?;
    let kubelet = Kubelet::start(&run, &cgroup, "kubelet")?;
    println!(
        "A stand-in kubelet, process {}, in {}",
        kubelet.pid(),
        cgroup.path().display()
    );

    // The first pod is probed over IPv4, the second over IPv6.
    let [shop, ledger] = &pods;
    let mut cells = cells(shop, shop.ns.ipv4().into());
    cells.extend(self::cells(ledger, ledger.ns.ipv6().into()));

    println!("\nProbing without probe-handler ...");
    let alone = probe_all(&kubelet, &cells)?;
    println!("Starting probe-handler ...");
    let mut daemon = DaemonSpec::new("daemon")
        .program(args.daemon.as_deref())
        .kubelet_cgroup(&cgroup)
        .start(&run)?;
    for pod in &mut pods {
        daemon.serve(pod)?;
    }
    println!("Probing with probe-handler, the Pod manifests unchanged ...\n");
    let with = probe_all(&kubelet, &cells)?;
    let mut wrong = show(&cells, &alone, &with);

    println!("\nprobe-handler status:\n");
    println!("{}", daemon.status_command(&[])?.trim_end());

    println!("\nThe mesh still rejects another process on the node:\n");
    wrong += show_bystander(&cells)?;
    if args.keep {
        keep(&run, &kubelet, &daemon, &pods)?;
    }
    let status = daemon.stop(GRACE)?;
    if !status.success() {
        bail!("the daemon ended with {status}:\n{}", daemon.log_tail());
    }
    if wrong > 0 {
        bail!("{wrong} results are wrong");
    }
    println!("\nEvery result is correct.");
    Ok(())
}

/// One probe and its expected results.
struct Cell {
    pod: String,
    what: &'static str,
    probe: Probe,
    /// Whether the app is healthy, which is what the kubelet must conclude.
    healthy: bool,
    /// Whether the probe passes without probe-handler.
    alone: bool,
}

fn pod(run: &Run, name: &str) -> Result<Pod> {
    let https = Protocol::Https {
        certificate: Certificate::SelfSigned,
        h2: true,
    };
    let app = AppSpec::new()
        .http(HTTP)
        .listen(https, Bind::DualStack, HTTPS)
        .grpc(GRPC)
        .tcp(OPEN);
    let http = |path: &str, port: u16, scheme: &str| json!({"httpGet": {"path": path, "port": port, "scheme": scheme}});
    let grpc = |service: &str| json!({"grpc": {"port": GRPC, "service": service}});
    let tcp = |port: u16| json!({"tcpSocket": {"port": port}});
    let container = |name: &str, liveness: Value, readiness: Value| json!({"name": name, "image": "app", "livenessProbe": liveness, "readinessProbe": readiness});
    PodSpec::new(name)
        .rules(RuleSet::IstioRedirect)
        .app(app)
        .container(container(
            "web",
            http("/healthy", HTTP, "HTTP"),
            http("/failing", HTTP, "HTTP"),
        ))
        .container(container(
            "web-tls",
            http("/healthy", HTTPS, "HTTPS"),
            http("/failing", HTTPS, "HTTPS"),
        ))
        .container(container("api", grpc("ok"), grpc("down")))
        .container(container("db", tcp(OPEN), tcp(CLOSED)))
        .start(run)
        .with_context(|| format!("pod {name}"))
}

fn cells(pod: &Pod, ip: IpAddr) -> Vec<Cell> {
    let cell = |what, probe, healthy, alone| Cell {
        pod: pod.name().to_owned(),
        what,
        probe,
        healthy,
        alone,
    };
    vec![
        cell(
            "HTTP healthy",
            Probe::http(ip, HTTP, "/healthy"),
            true,
            false,
        ),
        cell(
            "HTTP unhealthy",
            Probe::http(ip, HTTP, "/failing"),
            false,
            false,
        ),
        cell(
            "HTTPS healthy",
            Probe::https(ip, HTTPS, "/healthy"),
            true,
            false,
        ),
        cell(
            "HTTPS unhealthy",
            Probe::https(ip, HTTPS, "/failing"),
            false,
            false,
        ),
        cell("gRPC serving", Probe::grpc(ip, GRPC, "ok"), true, false),
        cell(
            "gRPC not serving",
            Probe::grpc(ip, GRPC, "down"),
            false,
            false,
        ),
        cell("TCP open", Probe::tcp(ip, OPEN), true, true),
        cell("TCP closed", Probe::tcp(ip, CLOSED), false, true),
    ]
}

/// Makes all probes concurrently, as the kubelet does.
fn probe_all(kubelet: &Kubelet, cells: &[Cell]) -> Result<Vec<ProbeResult>> {
    let begun: Vec<_> = cells
        .iter()
        .map(|cell| kubelet.begin(&cell.probe))
        .collect::<Result<_>>()?;
    begun.into_iter().map(|pending| pending.wait()).collect()
}

/// Prints the table; returns the number of wrong results.
fn show(cells: &[Cell], alone: &[ProbeResult], with: &[ProbeResult]) -> usize {
    let mut wrong = 0;
    let mut rows = Vec::new();
    for ((cell, alone), with) in cells.iter().zip(alone).zip(with) {
        let mut judge = |result: &ProbeResult, should: bool| {
            let mut text = words(result);
            if result.passed() != should {
                wrong += 1;
                text += "  <- WRONG";
            }
            text
        };
        let truth = |text: String, passed| match passed == cell.healthy {
            true => text,
            false => format!("{text}, incorrect"),
        };
        rows.push([
            cell.pod.clone(),
            cell.what.to_owned(),
            (if cell.healthy { "passes" } else { "fails" }).to_owned(),
            truth(judge(alone, cell.alone), alone.passed()),
            judge(with, cell.healthy),
        ]);
    }
    let header = [
        "pod",
        "probe",
        "expected",
        "without probe-handler",
        "with probe-handler",
    ];
    print!("{}", render(header, &rows));
    wrong
}

fn show_bystander(cells: &[Cell]) -> Result<usize> {
    let bystander = Kubelet::bystander()?;
    let results = probe_all(&bystander, cells)?;
    let mut wrong = 0;
    let mut rows = Vec::new();
    for (cell, result) in cells.iter().zip(results) {
        let mut text = words(&result);
        if result.passed() != cell.alone {
            wrong += 1;
            text += "  <- WRONG";
        }
        rows.push([cell.pod.clone(), cell.what.to_owned(), text]);
    }
    print!("{}", render(["pod", "request", "another process"], &rows));
    Ok(wrong)
}

/// The kubelet's conclusion with a short reason.
fn words(result: &ProbeResult) -> String {
    let verdict = if result.passed() { "passes" } else { "fails" };
    let reasons = [
        ("reset", "reset"),
        ("refused", "refused"),
        // Before Linux 6.1.
        ("not permitted", "refused"),
        ("NOT_SERVING", "not serving"),
        ("failed to connect", "no connection"),
        ("exceeded", "timeout"),
        ("timeout", "timeout"),
        ("alert", "TLS refused"),
        ("TLS", "TLS refused"),
        ("EOF", "closed"),
    ];
    let reason = match result.status {
        Some(status) => Some(status.to_string()),
        None => reasons
            .iter()
            .find(|(mark, _)| result.message.contains(mark))
            .map(|(_, word)| (*word).to_owned()),
    };
    match reason {
        Some(reason) => format!("{verdict} ({reason})"),
        None => verdict.to_owned(),
    }
}

/// Prints commands to try, and waits for ctrl-C.
fn keep(run: &Run, kubelet: &Kubelet, daemon: &Daemon, pods: &[Pod]) -> Result<()> {
    let testbed = worker::testbed_program()?;
    let control = ControlSocket::open(run.dir().join("kubelet.sock"))?;
    let (testbed, socket) = (testbed.display(), control.path().display());
    println!("\nEverything keeps running until ctrl-C. Commands to try:");
    println!("\n  probe as the kubelet, and as another process:");
    for pod in pods {
        let ip = pod.ns.ipv4();
        println!("    {testbed} probe --kubelet {socket} http://{ip}:{HTTP}/healthy");
        println!("    {testbed} probe http://{ip}:{HTTP}/healthy");
    }
    println!("  a closed port, which the kernel refuses:");
    println!(
        "    {testbed} probe --kubelet {socket} tcp://[{}]:{CLOSED}",
        pods[0].ns.ipv6()
    );
    println!("  inside a pod:");
    println!(
        "    ip netns exec {} iptables-nft -t nat -S",
        pods[0].ns.name()
    );
    println!("  the daemon:");
    println!(
        "    {} status -o wide --admin-socket {}",
        daemon.program().display(),
        daemon.socket().display()
    );
    println!(
        "  pod manifests, which you may edit: {}",
        daemon.pods().display()
    );
    println!("  other files of this run: {}", run.dir().display());
    let forever = Duration::from_secs(u32::MAX.into());
    let _interrupted = wait::until("ctrl-C", forever, || {
        if let Err(error) = control.answer(kubelet) {
            eprintln!("testbed: {error:#}");
        }
        None::<()>
    });
    println!();
    interrupt::check()
}
