//! A pod with Envoy and probes of every kind.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::Bed;
use crate::app::AppSpec;
use crate::app::tls::Certificate;
use crate::envoy::{Envoy, Settings};
use crate::kubelet::{Action, Probe};
use crate::mesh::Identity;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::suite::env::is_by_kernel;
use crate::suite::pod_pair::{declare, grpc_of, http_get, https_get, tcp_socket};
use crate::suite::sample_pod::Case;
use crate::wait;

pub(super) const HTTP: u16 = 8080;
const HTTPS: u16 = 8443;
const GRPC: u16 = 9090;
pub(super) const OPEN: u16 = 5432;
pub(super) const CLOSED: u16 = 5433;
/// How soon the kernel path serves a pod, and Envoy counts a connection.
const SOON: Duration = Duration::from_secs(5);
/// Maximum number of connections by which the daemon finds out where a pod's rules redirect a port without a listener, while
/// each probe is made once: one to the port and one to an unused port, in each address family.
pub(super) const TRIALS: u64 = 4;
const REQUEST: &str = "GET /healthy HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n";

/// A pod with its Envoy, which ends first.
#[derive(Debug)]
pub(super) struct Meshed {
    pub(super) envoy: Option<Envoy>,
    pub(super) pod: Pod,
    pub(super) settings: Settings,
}

pub(super) fn app() -> AppSpec {
    AppSpec::new()
        .http(HTTP)
        .https(HTTPS, Certificate::SelfSigned)
        .grpc(GRPC)
        .tcp(OPEN)
}

pub(super) fn spec(name: &str, rules: RuleSet) -> PodSpec {
    let spec = PodSpec::new(name).rules(rules).app(app()).without_sidecar();
    declare(
        spec,
        [
            http_get(HTTP, "/healthy"),
            http_get(HTTP, "/failing"),
            https_get(HTTPS, "/healthy"),
            https_get(HTTPS, "/failing"),
            grpc_of(GRPC, "ok"),
            grpc_of(GRPC, "down"),
            tcp_socket(OPEN),
            tcp_socket(CLOSED),
        ],
    )
}

/// The probes of the pod at `ip` and their results in plain Kubernetes.
pub(super) fn probes(ip: IpAddr) -> Vec<Case> {
    let all = [
        (Probe::http(ip, HTTP, "/healthy"), true),
        (Probe::http(ip, HTTP, "/failing"), false),
        (Probe::https(ip, HTTPS, "/healthy"), true),
        (Probe::https(ip, HTTPS, "/failing"), false),
        (Probe::grpc(ip, GRPC, "ok"), true),
        (Probe::grpc(ip, GRPC, "down"), false),
        (Probe::tcp(ip, OPEN), true),
        (Probe::tcp(ip, CLOSED), false),
    ];
    all.map(|(probe, healthy)| Case {
        passes_without_daemon: matches!(probe.action, Action::Tcp),
        probe,
        healthy,
    })
    .to_vec()
}

/// A probe that fails sooner if nothing answers: the gRPC client dials again until the timeout.
pub(super) fn short(probe: Probe) -> Probe {
    match probe.action {
        Action::Grpc { .. } => probe.timeout(Duration::from_millis(100)),
        _ => probe,
    }
}

impl Meshed {
    /// Starts a pod with Envoy and waits until the daemon serves it.
    pub(super) fn start(bed: Bed<'_>, spec: PodSpec, settings: Settings) -> Result<Self> {
        let mut meshed = Self {
            envoy: None,
            pod: spec.start(&bed.env.run)?,
            settings,
        };
        meshed.start_envoy(bed)?;
        bed.env.daemon.serve(&mut meshed.pod)?;
        meshed.wait_for_the_way(bed)?;
        Ok(meshed)
    }

    /// Starts a pod without Envoy and waits until the kubelet's probes bypass the mesh.
    pub(super) fn without_envoy(bed: Bed<'_>, spec: PodSpec, settings: Settings) -> Result<Self> {
        let mut pod = spec.start(&bed.env.run)?;
        pod.publish(bed.env.daemon.pods())?;
        let meshed = Self {
            envoy: None,
            pod,
            settings,
        };
        for ip in meshed.pod.ns.ips() {
            let probe = Probe::tcp(ip, OPEN);
            wait::until("the first probe that bypasses the mesh", SOON, || {
                bed.env.kubelet.probe(&probe).ok()?.passed().then_some(())
            })?;
        }
        meshed.wait_for_the_way(bed)?;
        Ok(meshed)
    }

    fn wait_for_the_way(&self, bed: Bed<'_>) -> Result<()> {
        let status = || bed.env.daemon.pod_status(self.pod.name());
        wait::until("the way of its probes", SOON, || {
            let status = status().ok()??;
            (bed.way.name != "kernel" || is_by_kernel(&status)).then_some(())
        })
        .with_context(|| format!("{:?}", status()))
    }

    pub(super) fn start_envoy(&mut self, bed: Bed<'_>) -> Result<()> {
        let envoy = Envoy::start(&bed.env.run, &self.pod.ns, bed.program, self.settings)?;
        self.envoy = Some(envoy);
        Ok(())
    }

    pub(super) fn envoy(&self) -> Result<&Envoy> {
        self.envoy.as_ref().context("no Envoy runs")
    }

    /// Checks that the probes at `ip` have the results of plain Kubernetes, and that Envoy gets none of their connections and
    /// at most [`TRIALS`] of the daemon's.
    pub(super) fn verdicts(&self, bed: Bed<'_>, ip: IpAddr) -> Result<()> {
        let inbound = || self.envoy.as_ref().map(Envoy::inbound).transpose();
        let before = inbound()?;
        for case in probes(ip) {
            let result = bed.env.kubelet.probe(&case.probe)?;
            ensure!(case.matches(&result), "{:?}: {result:?}", case.probe);
            let by_kernel = result.message.contains("refused");
            ensure!(
                case.probe.port != CLOSED || by_kernel,
                "a closed port: {result:?}"
            );
        }
        let after = inbound()?;
        let limit = before.map(|before| before + TRIALS);
        ensure!(
            (before..=limit).contains(&after),
            "Envoy had {before:?} connections, and after the probes {after:?}"
        );
        Ok(())
    }

    /// Checks that Envoy refuses a process that is not the kubelet, at a port where the app listens and at a closed one.
    pub(super) fn refuses_strangers(&self, bed: Bed<'_>, ip: IpAddr) -> Result<()> {
        let envoy = self.envoy()?;
        let before = envoy.inbound()?;
        for case in probes(ip) {
            let probe = short(case.probe);
            let result = bed.env.bystander.probe(&probe)?;
            let accepted = matches!(probe.action, Action::Tcp);
            ensure!(
                result.passed() == accepted && result.status.is_none(),
                "not handled by Envoy: {probe:?}: {result:?}"
            );
        }
        let all = before + u64::try_from(probes(ip).len())?;
        wait::until("Envoy to count all connections", SOON, || {
            (envoy.inbound().ok()? >= all).then_some(())
        })
    }

    /// Checks that the mesh's client reaches the app through Envoy, at an HTTP port and at one whose bytes Envoy forwards.
    pub(super) fn serves_the_mesh(&self, bed: Bed<'_>, ip: IpAddr) -> Result<()> {
        let answer = request(bed.env.run.mesh(), ip)?;
        ensure!(
            answer.contains("server: istio-envoy"),
            "not from Envoy: {answer}"
        );
        Ok(())
    }
}

/// A request of the mesh's client; the app's answer.
pub(super) fn request(mesh: &Identity, ip: IpAddr) -> Result<String> {
    let answer = mesh.request(ip, HTTP, REQUEST)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(answer)
}

/// A client of the mesh that sends one request after the other.
#[derive(Debug)]
pub(super) struct MeshTraffic {
    stop: Arc<AtomicBool>,
    client: Option<JoinHandle<Result<usize>>>,
}

impl MeshTraffic {
    pub(super) fn start(mesh: &Identity, ip: IpAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mesh, stopped) = (mesh.clone(), Arc::clone(&stop));
        let client = thread::spawn(move || {
            let mut answered = 0;
            while !stopped.load(Ordering::Relaxed) {
                let _answer = request(&mesh, ip).with_context(|| format!("after {answered}"))?;
                answered += 1;
            }
            Ok(answered)
        });
        Self {
            stop,
            client: Some(client),
        }
    }

    /// Stops the client; returns the number of requests, which were all answered.
    pub(super) fn stop(mut self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let client = self.client.take().context("stopped twice")?;
        let answered = client.join().map_err(|_| anyhow!("it panicked"))?;
        let answered = answered.context("the mesh's client")?;
        ensure!(answered > 0, "the mesh's client got no answer");
        Ok(answered)
    }
}

impl Drop for MeshTraffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(client) = self.client.take() {
            drop(client.join());
        }
    }
}
