//! A pod with probes of every kind, declared to a daemon.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::app::AppSpec;
use crate::app::tls::Certificate;
use crate::daemon::Daemon;
use crate::kubelet::{Kubelet, Probe};
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::suite::env::is_by_kernel;
use crate::suite::pod_pair::{declare, grpc_of, http_get, https_get, tcp_socket};
use crate::wait;

pub(super) const HTTP: u16 = 8080;
pub(super) const HTTPS: u16 = 8443;
const GRPC: u16 = 9090;
pub(super) const OPEN: u16 = 5432;
pub(super) const CLOSED: u16 = 5433;
/// Both httpGet and tcpSocket are declared.
pub(super) const BOTH: u16 = 8081;

/// How soon a pod is served by the kernel path.
const SOON: Duration = Duration::from_secs(5);

/// A pod with Istio's rules whose probes are of every kind.
pub(super) fn pod(name: &str) -> PodSpec {
    let app = AppSpec::new()
        .http(HTTP)
        .http(BOTH)
        .https(HTTPS, Certificate::SelfSigned)
        .grpc(GRPC)
        .tcp(OPEN);
    let spec = PodSpec::new(name).rules(RuleSet::IstioRedirect).app(app);
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
            http_get(BOTH, "/healthy"),
            tcp_socket(BOTH),
        ],
    )
}

/// Waits until the kernel path serves the pod.
pub(super) fn by_kernel(daemon: &Daemon, pod: &Pod) -> Result<()> {
    wait::until("the kernel path", SOON, || {
        let status = daemon.pod_status(pod.name()).ok()??;
        is_by_kernel(&status).then_some(())
    })
    .with_context(|| format!("{:?}", daemon.pod_status(pod.name())))
}

/// The reasons of the results of [`opaque`] probes, and how many are counted for each. Two probes share the gRPC port, and
/// two the HTTPS port: a result there counts for both.
pub(super) const OPAQUE: &[(&str, f64)] = &[
    ("healthy", 3.0),
    ("not_serving", 2.0),
    ("connected", 4.0),
    ("refused", 1.0),
];

/// Probes whose results the handler would not know either: six, all correct.
pub(super) fn opaque(kubelet: &Kubelet, ip: IpAddr, form: &dyn Fn(Probe) -> Probe) -> Result<()> {
    for (probe, passes) in [
        (Probe::https(ip, HTTPS, "/healthy"), true),
        (Probe::https(ip, HTTPS, "/failing"), false),
        (Probe::grpc(ip, GRPC, "ok"), true),
        (Probe::grpc(ip, GRPC, "down"), false),
        (Probe::tcp(ip, OPEN), true),
    ] {
        let result = kubelet.probe(&form(probe))?;
        ensure!(
            result.passed() == passes,
            "should pass: {passes}: {result:?}"
        );
    }
    let closed = kubelet.probe(&form(Probe::tcp(ip, CLOSED)))?;
    ensure!(
        !closed.passed() && closed.message.contains("refused"),
        "should be refused: {closed:?}"
    );
    Ok(())
}
