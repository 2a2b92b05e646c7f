//! Checks that the stand-in kubelet gets the same result as a real one for every behaviour of the app, in a
//! pod without a mesh, and that pilot-agent answers rewritten probes.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::Report;
use crate::app::tls::Certificate;
use crate::app::{AppSpec, Bind, Protocol};
use crate::cgroup::Cgroup;
use crate::kubelet::{Ended, Kubelet, Outcome, Probe, ProbeResult};
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::run::Run;

const HTTP: u16 = 8080;
const HTTPS: u16 = 8443;
const GRPC: u16 = 9090;
const TCP: u16 = 5432;
const CLOSED: u16 = 5433;
const V6_ONLY: u16 = 8091;
const ANY_V4: u16 = 8092;
const POD_IPS: u16 = 8093;
const LOOPBACK: u16 = 8094;

/// Runs all checks.
pub(super) fn check(run: &Run, report: &mut Report) -> Result<()> {
    let mut app = AppSpec::new()
        .http(HTTP)
        .grpc(GRPC)
        .tcp(TCP)
        .listen(Protocol::Http, Bind::V6Only, V6_ONLY)
        .listen(Protocol::Http, Bind::AnyV4, ANY_V4)
        .listen(Protocol::Http, Bind::PodIps, POD_IPS)
        .listen(Protocol::Http, Bind::Loopback, LOOPBACK);
    for (port, certificate) in (HTTPS..).zip(Certificate::all()) {
        app = app.https(port, *certificate);
    }
    let pod = PodSpec::new("plain").app(app).start(run)?;
    let cgroup = Cgroup::new(run, "selfcheck")?;
    let kubelet = Kubelet::start(run, &cgroup, "selfkubelet")?;
    process(report, &cgroup, &kubelet)?;
    outcomes(report, &kubelet, &pod)?;
    binds(report, &kubelet, &pod)?;
    heads(report, &kubelet, &pod)?;
    raw(report, &kubelet, &pod)?;
    pilot_agent(run, report, &kubelet)
}

fn process(report: &mut Report, cgroup: &Cgroup, kubelet: &Kubelet) -> Result<()> {
    let comm = fs::read_to_string(format!("/proc/{}/comm", kubelet.pid()))?;
    report.cell("kubelet", "name of its process", "selfkubelet", comm.trim());
    let members = fs::read_to_string(cgroup.path().join("cgroup.procs"))?;
    let pid = kubelet.pid().to_string();
    report.cell("kubelet", "members of its cgroup", &pid, members.trim());
    Ok(())
}

/// Outcome, and status if there is one: `failure 503`.
fn words(result: &ProbeResult) -> String {
    let outcome = match result.outcome {
        Outcome::Success => "success",
        Outcome::Warning => "warning",
        Outcome::Failure => "failure",
        Outcome::Discarded => "discarded",
    };
    let status = result
        .status
        .map(|status| format!(" {status}"))
        .unwrap_or_default();
    let attempts = match result.attempts {
        1 => String::new(),
        attempts => format!(", {attempts} attempts"),
    };
    format!("{outcome}{status}{attempts}")
}

fn outcomes(report: &mut Report, kubelet: &Kubelet, pod: &Pod) -> Result<()> {
    let ip = pod.ns.ipv4();
    let http = |path: &str| Probe::http(ip, HTTP, path);
    let short = Duration::from_millis(300);
    let cases = [
        ("/healthy", http("/healthy"), "success 200"),
        ("path without a slash", http("healthy"), "success 200"),
        ("/failing", http("/failing"), "failure 503"),
        ("/status/399", http("/status/399"), "warning 399"),
        ("/status/304", http("/status/304"), "warning 304"),
        ("/status/400", http("/status/400"), "failure 400"),
        ("/status/204", http("/status/204"), "success 204"),
        (
            "/slow within the timeout",
            http("/slow?ms=50"),
            "success 200",
        ),
        (
            "/slow beyond it",
            http("/slow?ms=900").timeout(short),
            "failure",
        ),
        (
            "/slow-headers",
            http("/slow-headers").timeout(short),
            "failure",
        ),
        (
            "/slow-body",
            http("/slow-body").timeout(short),
            "discarded 200, 3 attempts",
        ),
        (
            "/endless-headers",
            http("/endless-headers").timeout(short),
            "failure",
        ),
        ("/endless-body", http("/endless-body"), "success 200"),
        (
            "/large-headers",
            http("/large-headers?kb=64"),
            "success 200",
        ),
        ("/large-body", http("/large-body?kb=1024"), "success 200"),
        ("/early-close", http("/early-close"), "failure"),
        ("/reset", http("/reset"), "failure"),
        ("/cut-body", http("/cut-body"), "discarded 200, 3 attempts"),
        ("/chunked", http("/chunked"), "success 200"),
        ("/http10", http("/http10"), "success 200"),
        ("/continue", http("/continue"), "success 200"),
        ("/garbage", http("/garbage"), "failure"),
        ("/redirect/same", http("/redirect/same"), "success 200"),
        (
            "/redirect/failing",
            http("/redirect/failing"),
            "failure 503",
        ),
        ("/redirect/other", http("/redirect/other"), "warning 302"),
        ("/redirect/none", http("/redirect/none"), "warning 302"),
        ("/redirect/loop", http("/redirect/loop"), "failure"),
        ("HTTPS", Probe::https(ip, HTTPS, "/healthy"), "success 200"),
        (
            "HTTPS, expired",
            Probe::https(ip, HTTPS + 1, "/failing"),
            "failure 503",
        ),
        (
            "HTTPS, RSA",
            Probe::https(ip, HTTPS + 2, "/healthy"),
            "success 200",
        ),
        (
            "HTTPS, X.509 version 1",
            Probe::https(ip, HTTPS + 3, "/healthy"),
            "success 200",
        ),
        (
            "HTTPS to a plaintext port",
            Probe::https(ip, HTTP, "/healthy"),
            "failure",
        ),
        (
            "HTTP to a closed port",
            Probe::http(ip, CLOSED, "/healthy"),
            "failure",
        ),
        ("TCP open", Probe::tcp(ip, TCP), "success"),
        ("TCP closed", Probe::tcp(ip, CLOSED), "failure"),
        ("gRPC", Probe::grpc(ip, GRPC, ""), "success"),
        ("gRPC, service ok", Probe::grpc(ip, GRPC, "ok"), "success"),
        (
            "gRPC, service down",
            Probe::grpc(ip, GRPC, "down"),
            "failure",
        ),
        (
            "gRPC, unknown service",
            Probe::grpc(ip, GRPC, "other"),
            "failure",
        ),
        (
            "gRPC to a closed port",
            Probe::grpc(ip, CLOSED, ""),
            "failure",
        ),
        (
            "gRPC to an HTTP/1 port",
            Probe::grpc(ip, HTTP, ""),
            "failure",
        ),
        (
            "hook, status 500",
            Probe::hook(ip, HTTP, "/status/500"),
            "success 500",
        ),
        ("hook, closed port", Probe::hook(ip, CLOSED, "/"), "failure"),
        ("hook, reset", Probe::hook(ip, HTTP, "/reset"), "failure"),
    ];
    let begun: Vec<_> = cases
        .into_iter()
        .map(|(what, probe, expected)| Ok((what, kubelet.begin(&probe)?, expected)))
        .collect::<Result<_>>()?;
    for (what, pending, expected) in begun {
        report.cell("kubelet", what, expected, &words(&pending.wait()?));
    }
    Ok(())
}

/// Which of the app's addresses a probe reaches, and the peer address that the kubelet sees.
fn binds(report: &mut Report, kubelet: &Kubelet, pod: &Pod) -> Result<()> {
    let (v4, v6) = (pod.ns.ipv4(), pod.ns.ipv6());
    let cases = [
        (":: over IPv4", Probe::tcp(v4, HTTP), true),
        (":: over IPv6", Probe::tcp(v6, HTTP), true),
        (":: over IPv4-mapped", Probe::tcp(v4, HTTP).mapped(), true),
        (":: IPv6 only, over IPv4", Probe::tcp(v4, V6_ONLY), false),
        (":: IPv6 only, over IPv6", Probe::tcp(v6, V6_ONLY), true),
        (
            "0.0.0.0 over IPv4-mapped",
            Probe::tcp(v4, ANY_V4).mapped(),
            true,
        ),
        ("0.0.0.0 over IPv6", Probe::tcp(v6, ANY_V4), false),
        ("pod IPs over IPv4", Probe::tcp(v4, POD_IPS), true),
        ("pod IPs over IPv6", Probe::tcp(v6, POD_IPS), true),
        ("127.0.0.1 over IPv4", Probe::tcp(v4, LOOPBACK), false),
    ];
    for (what, probe, reached) in cases {
        let result = kubelet.probe(&probe)?;
        let expected = if reached { "success" } else { "failure" };
        report.cell("app bound to", what, expected, &words(&result));
        if reached {
            let peer = result.peer.context("a connection without peer")?.ip();
            let expected = match probe.mapped {
                true => v4.to_ipv6_mapped().to_string(),
                false => probe.ip.to_string(),
            };
            report.cell(
                "app bound to",
                &format!("{what}: peer"),
                &expected,
                &peer.to_string(),
            );
        }
    }
    Ok(())
}

/// The app's received request, byte for byte.
fn heads(report: &mut Report, kubelet: &Kubelet, pod: &Pod) -> Result<()> {
    let ip = pod.ns.ipv4();
    let node = || {
        pod.app
            .take_recorded()?
            .pop()
            .context("the app received nothing")
    };
    let _earlier = pod.app.take_recorded()?;

    let probe = Probe::http(ip, HTTP, "/echo?a=b")
        .header("x-one", "1")
        .header("Host", "app.example")
        .header("Accept", "text/html");
    let _result = kubelet.probe(&probe)?;
    let expected = "GET /echo?a=b HTTP/1.1\r\nHost: app.example\r\nUser-Agent: kube-probe/1.36\r\n\
                    Accept: text/html\r\nX-One: 1\r\nConnection: close\r\n\r\n";
    report.cell(
        "request head",
        "probe",
        &quoted(expected),
        &quoted(&node()?.head),
    );

    let _result = kubelet.probe(&Probe::hook(ip, HTTP, "/stop"))?;
    let expected = format!(
        "GET /stop HTTP/1.1\r\nHost: {ip}:{HTTP}\r\nUser-Agent: kube-lifecycle/1.36\r\n\
         Accept: */*\r\nAccept-Encoding: gzip\r\n\r\n"
    );
    report.cell(
        "request head",
        "hook",
        &quoted(&expected),
        &quoted(&node()?.head),
    );

    let _result = kubelet.probe(&Probe::http(ip, HTTP, "/redirect/same"))?;
    let expected = format!(
        "GET /healthy HTTP/1.1\r\nHost: {ip}:{HTTP}\r\nUser-Agent: kube-probe/1.36\r\n\
         Accept: */*\r\nReferer: http://{ip}:{HTTP}/redirect/same\r\nConnection: close\r\n\r\n"
    );
    report.cell(
        "request head",
        "after a redirect",
        &quoted(&expected),
        &quoted(&node()?.head),
    );

    let _result = kubelet.probe(&Probe::https(ip, HTTPS, "/healthy"))?;
    report.cell("request head", "HTTPS speaks", "h2", &node()?.protocol);

    let _result = kubelet.probe(&Probe::grpc(ip, GRPC, "ok"))?;
    let received = node()?;
    let mut lines = received.head.lines();
    let agent = lines
        .find(|line| line.starts_with("user-agent"))
        .unwrap_or_default();
    let expected = "user-agent: kube-probe/1.36 grpc-go/1.72.2";
    report.cell("request head", "gRPC", expected, agent);
    Ok(())
}

fn quoted(text: &str) -> String {
    text.replace("\r\n", "|")
}

fn raw(report: &mut Report, kubelet: &Kubelet, pod: &Pod) -> Result<()> {
    let ip = pod.ns.ipv6();
    let short = Duration::from_millis(200);
    let request = b"GET /reset HTTP/1.1\r\nHost: a\r\n\r\n";
    let cases = [
        ("reset", Probe::raw(ip, HTTP, request), Ended::Reset),
        ("refused", Probe::raw(ip, CLOSED, request), Ended::Refused),
        (
            "silence",
            Probe::raw(ip, TCP, b"hello").timeout(short),
            Ended::Open,
        ),
    ];
    for (what, probe, ended) in cases {
        let found = kubelet.probe(&probe)?.ended;
        report.cell(
            "bytes by hand",
            what,
            &format!("{:?}", Some(ended)),
            &format!("{found:?}"),
        );
    }
    pod.app.close(TCP)?;
    let closed = kubelet.probe(&Probe::tcp(ip, TCP))?;
    report.cell(
        "app",
        "a port that it has closed",
        "failure",
        &words(&closed),
    );
    pod.app.set_status("/healthy", 500)?;
    let changed = kubelet.probe(&Probe::http(ip, HTTP, "/healthy"))?;
    report.cell(
        "app",
        "a status that was set",
        "failure 500",
        &words(&changed),
    );
    Ok(())
}

fn pilot_agent(run: &Run, report: &mut Report, kubelet: &Kubelet) -> Result<()> {
    let pod = PodSpec::new("rewritten")
        .rules(RuleSet::IstioRedirect)
        .app(AppSpec::new().http(HTTP).grpc(GRPC))
        .istio_prober(
            "/app-health/a/livez",
            json!({"httpGet": {"port": HTTP, "path": "/healthy"}}),
        )
        .istio_prober(
            "/app-health/a/readyz",
            json!({"httpGet": {"port": HTTP, "path": "/failing"}}),
        )
        .istio_prober(
            "/app-health/b/livez",
            json!({"tcpSocket": {"port": CLOSED}}),
        )
        .istio_prober(
            "/app-health/c/livez",
            json!({"grpc": {"port": GRPC, "service": "ok"}}),
        )
        .start(run)?;
    let ip = pod.ns.ipv4();
    for (path, expected) in [
        ("/app-health/a/livez", "success 200"),
        ("/app-health/a/readyz", "failure 503"),
        ("/app-health/b/livez", "failure 500"),
        ("/app-health/c/livez", "success 200"),
        ("/app-health/unknown/livez", "failure 400"),
        ("/healthz/ready", "success 200"),
        ("/other", "failure 404"),
    ] {
        let result = kubelet.probe(&Probe::http(ip, 15020, path))?;
        report.cell("pilot-agent", path, expected, &words(&result));
    }
    let peers: BTreeSet<_> = pod
        .app
        .take_recorded()?
        .into_iter()
        .map(|recorded| recorded.peer.ip().to_canonical().to_string())
        .collect();
    let peers: Vec<_> = peers.into_iter().collect();
    report.cell(
        "pilot-agent",
        "as the app sees it",
        "127.0.0.6",
        &peers.join(" "),
    );
    Ok(())
}
