//! Ports, paths and containers: several kinds of probes on one port, named ports, hosts.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cases::Cases;
use super::env::Env;
use super::pod_pair::{Family, PodPair, declare, grpc_of, http_get, https_get, reason, tcp_socket};
use crate::app::tls::Certificate;
use crate::app::{AppSpec, Bind, Protocol};
use crate::kubelet::{Ended, Probe};
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::wait;

const HTTP: u16 = 8080;
const SECOND: u16 = 8081;
const HTTPS: u16 = 8443;
const GRPC: u16 = 9090;
const CLOSED: u16 = 5433;
/// A port on which the app listens and never accepts.
const DEAF: u16 = 5434;
/// Timeout of probes that get no answer.
const SHORT: Duration = Duration::from_millis(500);
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &[])?;
    one_port(cases, &env)?;
    services(cases, &env)?;
    containers(cases, &env)?;
    named(cases, &env)?;
    republished(cases, &env)
}

/// Every pair of kinds on one port; the app speaks one protocol, so the other kind fails as in plain
/// Kubernetes.
fn one_port(cases: &mut Cases, env: &Env) -> Result<()> {
    let pods = PodPair::start(env, "kinds", |name| {
        let app = AppSpec::new()
            .http(HTTP)
            .https(HTTPS, Certificate::SelfSigned)
            .grpc(GRPC)
            .listen(Protocol::Deaf, Bind::DualStack, DEAF);
        let mut probes = Vec::new();
        for port in [HTTP, HTTPS, GRPC, CLOSED, DEAF] {
            probes.extend([
                http_get(port, "/healthy"),
                http_get(port, "/failing"),
                https_get(port, "/healthy"),
                tcp_socket(port),
                grpc_of(port, "ok"),
            ]);
        }
        declare(PodSpec::new(name).app(app), probes)
    })?;
    cases.case("kinds/mesh-is-strict", || pods.mesh_is_strict(HTTP));
    for (port_name, port) in [
        ("http", HTTP),
        ("https", HTTPS),
        ("grpc", GRPC),
        ("closed", CLOSED),
        ("deaf", DEAF),
    ] {
        type Make = fn(std::net::IpAddr, u16) -> Probe;
        let kinds: [(&str, Make, bool); 5] = [
            (
                "http",
                |ip, port| Probe::http(ip, port, "/healthy"),
                port == HTTP,
            ),
            (
                "failing",
                |ip, port| Probe::http(ip, port, "/failing"),
                false,
            ),
            (
                "https",
                |ip, port| Probe::https(ip, port, "/healthy"),
                port == HTTPS,
            ),
            ("tcp", Probe::tcp, port != CLOSED),
            ("grpc", |ip, port| Probe::grpc(ip, port, "ok"), port == GRPC),
        ];
        for (kind, make, passes) in kinds {
            cases.case(&format!("kinds/{kind}-on-a-{port_name}-port"), || {
                for family in FAMILIES {
                    let pair = pods.both(family, |ip| match passes {
                        true => make(ip, port),
                        // Some of these take their whole timeout.
                        false => make(ip, port).timeout(SHORT),
                    })?;
                    ensure!(
                        pair.ours.passed() == passes && pair.plain.passed() == passes,
                        "passes {passes}: {pair:?}"
                    );
                }
                Ok(())
            });
        }
    }
    Ok(())
}

/// Every answer of the gRPC health service.
fn services(cases: &mut Cases, env: &Env) -> Result<()> {
    let pods = PodPair::start(env, "services", |name| {
        let probes = ["", "ok", "down", "unknown"].map(|service| grpc_of(GRPC, service));
        declare(PodSpec::new(name).app(AppSpec::new().grpc(GRPC)), probes)
    })?;
    for (service, passes) in [
        ("", true),
        ("ok", true),
        ("down", false),
        ("unknown", false),
    ] {
        cases.case(&format!("grpc/service-{service:?}"), || {
            for family in FAMILIES {
                let pair = pods.same(family, |ip| Probe::grpc(ip, GRPC, service))?;
                ensure!(
                    pair.ours.passed() == passes && pair.ours.message == pair.plain.message,
                    "{pair:?}"
                );
            }
            Ok(())
        });
    }
    cases.case("grpc/requests-are-the-same", || {
        for family in FAMILIES {
            let recorded = pods.same_requests(family, |ip| Probe::grpc(ip, GRPC, "ok"))?;
            ensure!(recorded.len() == 1, "one request: {recorded:?}");
        }
        Ok(())
    });
    Ok(())
}

/// The same path on two ports with different health, in separate containers and in one.
fn containers(cases: &mut Cases, env: &Env) -> Result<()> {
    let pods = PodPair::start(env, "containers", |name| {
        let app = AppSpec::new().http(HTTP).http(SECOND);
        PodSpec::new(name)
            .app(app)
            .container(json!({
                "name": "one", "image": "app",
                "livenessProbe": http_get(HTTP, "/health"),
                "readinessProbe": http_get(HTTP, "/health"),
                "startupProbe": http_get(HTTP, "/started"),
            }))
            .container(json!({
                "name": "two", "image": "app",
                "livenessProbe": http_get(SECOND, "/health"),
                "readinessProbe": {"exec": {"command": ["true"]}},
            }))
            .container(json!({
                "name": "three", "image": "app",
                "readinessProbe": http_get(HTTP, "/health"),
            }))
    })?;
    cases.case("containers/same-path-on-two-ports", || {
        // The testbed's app sets a path's status on all its ports, so one port gets another answer.
        let first = |ip| Probe::http(ip, HTTP, "/health");
        let second = |ip| Probe::http(ip, SECOND, "/health");
        for app in [&pods.meshed.app, &pods.plain.app] {
            app.set_port_status(SECOND, 500)?;
        }
        for family in FAMILIES {
            let _passed = pods.both_pass(family, first)?;
            let _failed = pods.both_fail(family, second)?;
        }
        for app in [&pods.meshed.app, &pods.plain.app] {
            app.set_port_status(SECOND, 200)?;
            app.set_port_status(HTTP, 503)?;
        }
        for family in FAMILIES {
            let _failed = pods.both_fail(family, first)?;
            let _passed = pods.both_pass(family, second)?;
        }
        Ok(())
    });
    cases.case(
        "containers/each-probe-of-the-same-port-and-path-has-a-row",
        || {
            let status = status_of(env, &pods.meshed)?;
            let rows: Vec<_> = status["probes"]
                .as_array()
                .context("probes")?
                .iter()
                .collect();
            let shared: Vec<_> = rows
                .iter()
                .filter(|row| row["port"] == HTTP && row["target"] == "/health")
                .collect();
            ensure!(shared.len() > 1, "several probes: {rows:#?}");
            for row in &shared {
                // Their requests can't be distinguished, so they have the same results.
                let others = row["shared_with"].as_u64().context("shared_with")?;
                ensure!(others + 1 == shared.len() as u64, "{row:#}");
                ensure!(row["success"] == shared[0]["success"], "{row:#}");
            }
            Ok(())
        },
    );
    cases.case("containers/exec-is-not-served", || {
        let status = status_of(env, &pods.meshed)?;
        skipped(&status, "two", "readiness", "exec")
    });
    Ok(())
}

fn status_of(env: &Env, pod: &Pod) -> Result<Value> {
    env.daemon.pod_status(pod.name())?.context("an unknown pod")
}

fn skipped(status: &Value, container: &str, probe: &str, why: &str) -> Result<()> {
    let list = status["skipped"].as_array().context("skipped")?;
    let found = list.iter().any(|one| {
        one["container"] == container
            && one["probe"] == probe
            && one["why"].as_str().is_some_and(|text| text.contains(why))
    });
    ensure!(found, "{container}'s {probe} ({why}): {list:#?}");
    Ok(())
}

/// Named ports. A probe with an unknown port name or with another host goes to the mesh.
fn named(cases: &mut Cases, env: &Env) -> Result<()> {
    const UNRESOLVED: u16 = 8082;
    const HOST: u16 = 8083;
    const UDP: u16 = 8084;
    let pod = env.pod(
        PodSpec::new("named")
            .rules(RuleSet::IstioRedirect)
            .app(AppSpec::new().http(HTTP).http(SECOND).http(UNRESOLVED).http(HOST).http(UDP))
            .container(json!({
                "name": "named", "image": "app",
                "ports": [
                    {"name": "web", "containerPort": HTTP},
                    {"name": "udp", "containerPort": UDP, "protocol": "UDP"},
                ],
                "livenessProbe": {"httpGet": {"port": "web"}},
                "readinessProbe": {"httpGet": {"port": "8081", "path": "/number-as-text"}},
                "startupProbe": {"httpGet": {"port": "udp", "path": "/healthy"}},
            }))
            .container(json!({
                "name": "other", "image": "app",
                "livenessProbe": {"httpGet": {"port": "web", "path": "/name-of-another-container"}},
                "readinessProbe": {"httpGet": {"port": HOST, "host": "192.0.2.1", "path": "/healthy"}},
            })),
    )?;
    let ip = pod.ns.ipv4();
    cases.case("named/resolves", || {
        let _passed = env.passes(&Probe::http(ip, HTTP, "/"))?;
        let _passed = env.passes(&Probe::http(ip, SECOND, "/number-as-text"))?;
        env.passes(&Probe::http(ip, UDP, "/healthy")).map(drop)
    });
    let status = status_of(env, &pod)?;
    let cases_not_served = [
        (
            "port-of-another-container",
            "other",
            "liveness",
            "web",
            HTTP,
            "/name-of-another-container",
        ),
        ("host", "other", "readiness", "192.0.2.1", HOST, "/healthy"),
    ];
    for (name, container, probe, why, port, path) in cases_not_served {
        cases.case(&format!("named/{name}-is-not-served"), || {
            skipped(&status, container, probe, why)?;
            let refused = |request: &Probe| -> Result<()> {
                let result = env.fails(request)?;
                ensure!(result.status.is_none(), "met the mesh: {result:?}");
                Ok(())
            };
            refused(&Probe::http(ip, port, path))
        });
    }
    cases.case("named/undeclared-port-meets-the-mesh", || {
        let request = b"GET /healthy HTTP/1.1\r\nHost: app\r\n\r\n";
        let result = env.kubelet.probe(&Probe::raw(ip, UNRESOLVED, request))?;
        ensure!(result.ended == Some(Ended::Reset), "{result:?}");
        Ok(())
    });
    Ok(())
}

/// A manifest that changes takes effect at once.
fn republished(cases: &mut Cases, env: &Env) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(5);
    if !cases.wants("republished") {
        return Ok(());
    }
    let container = |port: u16| json!({"name": "app", "image": "app", "livenessProbe": http_get(port, "/healthy")});
    let mut pod = env.pod(
        PodSpec::new("republished")
            .rules(RuleSet::IstioRedirect)
            .app(AppSpec::new().http(HTTP).http(SECOND))
            .container(container(HTTP)),
    )?;
    let ip = pod.ns.ipv4();
    cases.case("republished/takes-effect", || {
        for (new, old) in [(SECOND, HTTP), (HTTP, SECOND), (SECOND, HTTP)] {
            let _passed = env.passes(&Probe::http(ip, old, "/healthy"))?;
            let _failed = env.fails(&Probe::http(ip, new, "/healthy"))?;
            pod.set_containers(vec![container(new)]);
            let changed = Instant::now();
            pod.publish(env.daemon.pods())?;
            wait::until("the new port to be served", LIMIT, || {
                let result = env.kubelet.probe(&Probe::http(ip, new, "/healthy")).ok()?;
                result.passed().then_some(())
            })?;
            let took = changed.elapsed();
            println!("     a changed port took effect within {took:?}");
            let _failed = env.fails(&Probe::http(ip, old, "/healthy"))?;
            let why = reason(env, &pod, |probe| probe["port"] == new)?;
            ensure!(why == "healthy", "{why}");
        }
        Ok(())
    });
    cases.case("republished/withdrawn", || {
        let port = SECOND;
        let _passed = env.passes(&Probe::http(ip, port, "/healthy"))?;
        let changed = Instant::now();
        pod.withdraw()?;
        wait::until("the pod not to be served", LIMIT, || {
            let result = env.kubelet.probe(&Probe::http(ip, port, "/healthy")).ok()?;
            (!result.passed()).then_some(())
        })?;
        println!(
            "     a removed manifest took effect within {:?}",
            changed.elapsed()
        );
        Ok(())
    });
    Ok(())
}
