//! Probes that were rewritten before the kubelet received the pod: by Istio's injector (the daemon takes them
//! over from pilot-agent) or by our webhook. The result is that of the original probe in plain Kubernetes.

mod originals;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::cases::Cases;
use super::env::Env;
use super::pod_pair::{Family, http_get};
use super::sample_pod::{self, Probing};
use crate::app::tls::Certificate;
use crate::app::{App, AppSpec};
use crate::kubelet::{Ended, Probe, ProbeResult};
use crate::pace;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
pub(super) use originals::{Original, originals};

pub(super) const AGENT: u16 = 15020;
const SIDECAR_READINESS: u16 = 15021;
const HTTP: u16 = 8080;
const TLS: u16 = 8440;
const GRPC: u16 = 9090;
const OPEN: u16 = 5432;
const CLOSED: u16 = 5433;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// A text that only the stand-in pilot-agent sends.
const AGENTS_MARK: &str = "X-Pilot-Agent";

/// Who rewrote the probes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rewriter {
    Istio,
    Webhook,
}

impl Rewriter {
    const fn name(self) -> &'static str {
        match self {
            Self::Istio => "takeover",
            Self::Webhook => "rewrite",
        }
    }
}

pub fn run(cases: &mut Cases) -> Result<()> {
    let mut env = Env::start(cases, &[])?;
    let plain = PodSpec::new("original").app(app()).start(&env.run)?;
    for rewriter in [Rewriter::Istio, Rewriter::Webhook] {
        let pod = env.pod(spec(rewriter))?;
        let name = rewriter.name();
        for original in originals() {
            let case = format!("{name}/{}-{}", original.container, original.end);
            cases.case(&case, || same_as_original(&env, &pod, &plain, &original));
        }
        cases.case(&format!("{name}/status-says-so"), || {
            let status = env.daemon.pod_status(pod.name())?.context("unknown pod")?;
            let rows = status["probes"].as_array().context("probes")?;
            ensure!(
                rows.len() == originals().len() && rows.iter().all(|row| row["mode"] == name),
                "{rows:#?}"
            );
            Ok(())
        });
        cases.case(&format!("{name}/headers"), || headers(&env, &pod, &plain));
        cases.case(
            &format!("{name}/only-the-status-reaches-the-kubelet"),
            || only_the_status(&env, &pod),
        );
        relays(cases, &env, &pod, name);
    }
    other_port(cases, &env)?;
    fallback(cases, &mut env)
}

/// Our webhook can use another port than Istio's injector.
fn other_port(cases: &mut Cases, env: &Env) -> Result<()> {
    const REWRITE: u16 = 15999;
    if !cases.wants("rewrite/other-port") {
        return Ok(());
    }
    let (livez, readyz) = ("/app-health/web/livez", "/app-health/web/readyz");
    let originals = json!({livez: http_get(HTTP, "/healthy"), readyz: http_get(HTTP, "/failing")});
    let container = json!({
        "name": "web", "image": "app",
        "livenessProbe": http_get(REWRITE, livez),
        "readinessProbe": http_get(REWRITE, readyz),
    });
    let pod = env.pod(
        PodSpec::new("other-port")
            .rules(RuleSet::IstioRedirect)
            .app(app())
            .annotation("probe-handler.io/probes", &originals.to_string())
            .container(container),
    )?;
    cases.case("rewrite/other-port", || {
        for family in FAMILIES {
            let ip = family.ip(&pod.ns);
            let _passed = env.passes(&Probe::http(ip, REWRITE, livez))?;
            let result = env.fails(&Probe::http(ip, REWRITE, readyz))?;
            ensure!(result.status == Some(503), "{result:?}");
        }
        Ok(())
    });
    Ok(())
}

pub(super) fn app() -> AppSpec {
    let app = AppSpec::new().http(HTTP).grpc(GRPC).tcp(OPEN);
    (TLS..)
        .zip(Certificate::all())
        .fold(app, |app, (port, certificate)| {
            app.https(port, *certificate)
        })
}

/// A probe of `/app-health/...`, or a hook of `/app-lifecycle/...`, as in the rewritten spec.
fn spec(rewriter: Rewriter) -> PodSpec {
    let mut spec = PodSpec::new(rewriter.name())
        .rules(RuleSet::IstioRedirect)
        .app(app());
    let mut containers = Map::new();
    let mut annotation = Map::new();
    for original in originals() {
        let mut entry = original.action.clone();
        if !original.is_hook() {
            entry["timeoutSeconds"] = json!(pace::factor());
        }
        match rewriter {
            Rewriter::Istio => spec = spec.istio_prober(&original.path(), entry),
            Rewriter::Webhook => drop(annotation.insert(original.path(), entry)),
        }
        let container = containers
            .entry(original.container)
            .or_insert_with(|| json!({"name": original.container, "image": "app"}));
        let rewritten = http_get(AGENT, &original.path());
        match original.end {
            "livez" => container["livenessProbe"] = rewritten,
            "readyz" => container["readinessProbe"] = rewritten,
            "startupz" => container["startupProbe"] = rewritten,
            "poststartz" => container["lifecycle"]["postStart"] = rewritten,
            _ => container["lifecycle"]["preStop"] = rewritten,
        }
    }
    if rewriter == Rewriter::Webhook {
        let originals = Value::Object(annotation).to_string();
        spec = spec.annotation("probe-handler.io/probes", &originals);
    }
    containers
        .into_iter()
        .fold(spec, |spec, (_, container)| spec.container(container))
}

fn agent_requests(pod: &Pod) -> Result<u64> {
    Ok(pod
        .sidecar
        .as_ref()
        .context("a sidecar")?
        .counts()?
        .pilot_agent)
}

pub(super) fn same_as_original(
    env: &Env,
    pod: &Pod,
    plain: &Pod,
    original: &Original,
) -> Result<()> {
    for family in FAMILIES {
        let before = agent_requests(pod)?;
        let ours = env.kubelet.begin(&original.rewritten(family.ip(&pod.ns)))?;
        let truth = env
            .bystander
            .begin(&(original.native)(family.ip(&plain.ns)))?;
        let (ours, truth) = (ours.wait()?, truth.wait()?);
        ensure!(
            ours.passed() == original.passes && truth.passed() == original.passes,
            "passes {}: {ours:?}, in plain Kubernetes {truth:?}",
            original.passes
        );
        if truth.status.is_some() {
            ensure!(
                ours.status == truth.status,
                "the status: {ours:?} {truth:?}"
            );
        }
        if original.is_hook() && !original.passes {
            ensure!(ours.status.is_none(), "a transport error: {ours:?}");
        }
        ensure!(!ours.head.contains(AGENTS_MARK), "pilot-agent's: {ours:?}");
        ensure!(
            agent_requests(pod)? == before,
            "pilot-agent was asked as well"
        );
    }
    Ok(())
}

/// The app gets the same request as without rewriting: the headers, the Host with its own port, and no other header.
fn headers(env: &Env, pod: &Pod, plain: &Pod) -> Result<()> {
    let own = "/healthy?deep=1";
    let sets: [&[(&str, &str)]; 4] = [
        &[],
        &[("X-Custom", "one"), ("X-Second", "two")],
        &[("Host", "app.example")],
        &[("Host", "app.example:15020"), ("Accept", "")],
    ];
    for set in sets {
        for family in FAMILIES {
            let with = |probe: Probe| {
                set.iter()
                    .fold(probe, |probe, (name, value)| probe.header(name, value))
            };
            let (ip, plain_ip) = (family.ip(&pod.ns), family.ip(&plain.ns));
            let (_, _) = (pod.app.take_recorded()?, plain.app.take_recorded()?);
            let rewritten = with(Probe::http(ip, AGENT, "/app-health/web/livez"));
            let _passed = env.passes(&rewritten)?;
            let native = with(Probe::http(plain_ip, HTTP, own));
            let _passed = env.bystander.probe(&native)?;
            let ours = only_request(&pod.app)?;
            let expected = only_request(&plain.app)?
                .replace(&plain_ip.to_string(), &ip.to_string())
                .replace("app.example:15020", "app.example:8080");
            ensure!(ours == expected, "{ours:?}, not {expected:?}");
        }
    }
    Ok(())
}

fn only_request(app: &App) -> Result<String> {
    let recorded = app.take_recorded()?;
    ensure!(recorded.len() == 1, "one request: {recorded:?}");
    Ok(recorded[0].head.clone())
}

fn only_the_status(env: &Env, pod: &Pod) -> Result<()> {
    let request = b"GET /app-health/web/livez HTTP/1.1\r\nHost: app\r\n\r\n";
    for family in FAMILIES {
        let probe = Probe::raw(family.ip(&pod.ns), AGENT, request);
        let result = env.kubelet.probe(&probe)?;
        ensure!(
            result.body == "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                && result.ended == Some(Ended::Closed),
            "{result:?}"
        );
    }
    Ok(())
}

/// The probes that the stand-in pilot-agent answers at once.
fn quick() -> impl Iterator<Item = Original> {
    let slow = |original: &Original| matches!(original.container, "slow" | "api" | "certificates");
    originals()
        .into_iter()
        .filter(move |original| !slow(original))
}

/// The daemon ends as when its node is drained, while the kubelet continues to probe: each probe has its correct result,
/// from the daemon or from pilot-agent.
fn no_probe_lost(env: &mut Env, pod: &Pod, stopped: &mut bool) -> Result<()> {
    let ip = IpAddr::V4(pod.ns.ipv4());
    let probed: Vec<_> = quick()
        .filter(|original| !original.is_hook())
        .map(|original| (original.rewritten(ip), original.passes))
        .collect();
    let probes = probed.iter().map(|(probe, _)| probe.clone());
    let probing = Probing::start_many(&Arc::clone(&env.kubelet), probes.collect());
    probing.more(10)?;
    *stopped = true;
    env.stop_daemon()?;
    probing.more(10)?;
    let made = probing.stop()?;
    let wrong: Vec<_> = made
        .iter()
        .filter(|made| {
            let expected = probed.iter().find(|(probe, _)| *probe == made.probe);
            // Both always answer with a status.
            made.result.status.is_none()
                || expected.is_none_or(|(_, passes)| made.result.passed() != *passes)
        })
        .collect();
    let agents = made
        .iter()
        .filter(|made| made.result.head.contains(AGENTS_MARK))
        .count();
    println!(
        "     {} probes, {agents} of them answered by pilot-agent",
        made.len()
    );
    ensure!(agents > 0 && agents < made.len(), "not by both");
    sample_pod::none_wrong("while the daemon is stopped", &wrong)
}

/// A request on that port that is not a rewritten probe reaches pilot-agent unchanged, byte for byte.
fn relays(cases: &mut Cases, env: &Env, pod: &Pod, name: &str) {
    let requests = [
        ("healthz-ready", "GET /healthz/ready", "200"),
        ("stats", "GET /stats/prometheus", "200"),
        ("unknown-container", "GET /app-health/nobody/livez", "400"),
        ("unknown-kind", "GET /app-health/web/otherz", "400"),
        ("with-a-query", "GET /app-health/web/livez?x", ""),
        ("post", "POST /app-health/web/livez", ""),
        ("root", "GET /", "404"),
    ];
    for (what, line, status) in requests {
        cases.case(&format!("{name}/relays-{what}"), || {
            for family in FAMILIES {
                let ip = family.ip(&pod.ns);
                let request = format!("{line} HTTP/1.1\r\nHost: {ip}:{AGENT}\r\n\r\n");
                let probe =
                    Probe::raw(ip, AGENT, request.as_bytes()).timeout(Duration::from_secs(3));
                let before = agent_requests(pod)?;
                let ours = env.kubelet.probe(&probe)?;
                ensure!(agent_requests(pod)? == before + 1, "asked once: {ours:?}");
                let anybody = env.bystander.probe(&probe)?;
                ensure!(
                    ours.body == anybody.body && ours.ended == anybody.ended,
                    "{ours:?}, anybody else {anybody:?}"
                );
                let begin = format!("HTTP/1.1 {status}");
                ensure!(
                    ours.body.starts_with(&begin) && ours.body.contains(AGENTS_MARK),
                    "pilot-agent's own {status}: {ours:?}"
                );
            }
            Ok(())
        });
    }
    cases.case(&format!("{name}/port-15021-is-never-touched"), || {
        let probe = |ip| Probe::http(ip, SIDECAR_READINESS, "/healthz/ready");
        let before = redirected(env)?;
        for family in FAMILIES {
            let ours: ProbeResult = env.kubelet.probe(&probe(family.ip(&pod.ns)))?;
            ensure!(!ours.passed(), "nobody listens there: {ours:?}");
            ensure!(ours.message.contains("refused"), "by the kernel: {ours:?}");
        }
        ensure!(redirected(env)? == before, "it came to the handler");
        Ok(())
    });
}

/// The number of connections that the programs redirected to the handler.
fn redirected(env: &Env) -> Result<u64> {
    let status = env.daemon.status()?;
    let count = status["counters"]["redirected"].as_u64();
    count.with_context(|| format!("no such counter: {}", status["counters"]))
}

/// With the daemon stopped, the same connections reach pilot-agent.
fn fallback(cases: &mut Cases, env: &mut Env) -> Result<()> {
    if !cases.wants("daemon-stopped") {
        return Ok(());
    }
    let pod = env.pod(spec(Rewriter::Istio))?;
    let mut stopped = false;
    cases.case("daemon-stopped/no-probe-lost", || {
        no_probe_lost(env, &pod, &mut stopped)
    });
    if !stopped {
        env.stop_daemon()?;
    }
    cases.case("daemon-stopped/pilot-agent-answers", || {
        let ip = IpAddr::V4(pod.ns.ipv4());
        let mut asked = 0;
        for original in quick() {
            let before = agent_requests(&pod)?;
            let result = env.kubelet.probe(&original.rewritten(ip))?;
            ensure!(
                agent_requests(&pod)? > before && result.head.contains(AGENTS_MARK),
                "{}: pilot-agent answers: {result:?}",
                original.path()
            );
            if !original.is_hook() {
                ensure!(
                    result.passed() == original.passes,
                    "{}: {result:?}",
                    original.path()
                );
            }
            asked += 1;
        }
        ensure!(asked > 5, "only {asked} probes were made");
        Ok(())
    });
    Ok(())
}
