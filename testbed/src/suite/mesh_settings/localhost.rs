//! Meshes that connect to the app at localhost (Istio's `inboundTrafficPolicy` LOCALHOST): the daemon does the same,
//! whether the probes are taken over or as declared.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::app::{AppSpec, Bind, Protocol};
use crate::kubelet::Probe;
use crate::pod::PodSpec;
use crate::rules::RuleSet;
use crate::sidecar::Traffic;
use crate::suite::cases::Cases;
use crate::suite::env::Env;
use crate::suite::pod_pair::{declare, grpc_of, http_get, tcp_socket};

const HTTP: u16 = 8080;
const GRPC: u16 = 9090;
const OPEN: u16 = 5432;
const CLOSED: u16 = 5433;
/// On all addresses.
const ANYWHERE: u16 = 8081;
/// Listens only on the pod's own address, to which such a mesh does not connect.
const POD_ONLY: u16 = 8082;

/// Istio's status port.
const AGENT: u16 = 15020;

pub(super) fn run(cases: &mut Cases, env: &Env) -> Result<()> {
    for (name, permissive) in [("localhost-permissive", true), ("localhost-strict", false)] {
        if !cases.wants(&format!("{name}/")) && !cases.wants(name) {
            continue;
        }
        let pod = env.pod(spec(name, permissive))?;
        let ip = IpAddr::V4(pod.ns.ipv4());
        cases.case(&format!("{name}/stand-in"), || {
            let probe = env.bystander.probe(&Probe::http(ip, HTTP, "/healthy"))?;
            ensure!(probe.passed() == permissive, "{probe:?}");
            Ok(())
        });
        cases.case(&format!("{name}/as-declared"), || declared(env, ip));
        cases.case(&format!("{name}/taken-over"), || {
            let agent = |path: &str| Probe::http(ip, AGENT, &format!("/app-health/{path}"));
            let _passed = env.passes(&agent("healthy/livez"))?;
            let _passed = env.passes(&agent("open/livez"))?;
            let failing = env.fails(&agent("healthy/readyz"))?;
            ensure!(failing.status == Some(503), "{failing:?}");
            let _failed = env.fails(&agent("open/readyz"))?;
            let agents = pod.sidecar.as_ref().map(|sidecar| sidecar.counts());
            let agents = agents.transpose()?.map(|counts| counts.pilot_agent);
            ensure!(agents == Some(0), "not taken over: {agents:?}");
            Ok(())
        });
    }
    Ok(())
}

fn spec(name: &str, permissive: bool) -> PodSpec {
    let app = AppSpec::new()
        .listen(Protocol::Http, Bind::Loopback, HTTP)
        .listen(Protocol::Grpc, Bind::Loopback, GRPC)
        .listen(Protocol::Tcp, Bind::Loopback, OPEN)
        .http(ANYWHERE)
        .listen(Protocol::Http, Bind::PodIps, POD_ONLY);
    let spec = PodSpec::new(name)
        .rules(RuleSet::IstioRedirect)
        .traffic(Traffic {
            permissive,
            localhost: true,
            ipv4_only: false,
        })
        .app(app);
    let probes = [
        http_get(HTTP, "/healthy"),
        http_get(HTTP, "/failing"),
        http_get(ANYWHERE, "/healthy"),
        http_get(POD_ONLY, "/healthy"),
        grpc_of(GRPC, "ok"),
        tcp_socket(OPEN),
        tcp_socket(CLOSED),
    ];
    let rewritten = |path: &str| http_get(AGENT, path);
    let mut spec = declare(spec, probes);
    for (container, alive, ready) in [
        (
            "healthy",
            http_get(HTTP, "/healthy"),
            http_get(HTTP, "/failing"),
        ),
        ("open", tcp_socket(OPEN), tcp_socket(CLOSED)),
    ] {
        let path = |end: &str| format!("/app-health/{container}/{end}");
        spec = spec
            .istio_prober(&path("livez"), alive)
            .istio_prober(&path("readyz"), ready)
            .container(json!({
                "name": container,
                "image": "app",
                "livenessProbe": rewritten(&path("livez")),
                "readinessProbe": rewritten(&path("readyz")),
            }));
    }
    spec
}

fn declared(env: &Env, ip: IpAddr) -> Result<()> {
    for (probe, healthy) in [
        (Probe::http(ip, HTTP, "/healthy"), true),
        (Probe::http(ip, HTTP, "/failing"), false),
        (Probe::http(ip, ANYWHERE, "/healthy"), true),
        (Probe::http(ip, POD_ONLY, "/healthy"), false),
        (Probe::grpc(ip, GRPC, "ok"), true),
        (Probe::tcp(ip, OPEN), true),
        (Probe::tcp(ip, CLOSED), false),
    ] {
        let result = env.kubelet.probe(&probe)?;
        ensure!(result.passed() == healthy, "{probe:?}: {result:?}");
    }
    Ok(())
}
