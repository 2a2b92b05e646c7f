//! `--events`: the API server gets Events about failing probes, probes that are not served and ports that the mesh hides;
//! probes do not depend on it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::env::Env;
use crate::app::AppSpec;
use crate::kubelet::Probe;
use crate::node::{Node, NodePod, Order};
use crate::pod::PodSpec;
use crate::rules::RuleSet;
use crate::run::Run;
use crate::suite::cases::Cases;
use crate::suite::pod_pair::{declare, http_get, tcp_socket};
use crate::suite::sample_pod::Probing;
use crate::wait;

const HTTP: u16 = 8080;
const OPEN: u16 = 5432;
const CLOSED: u16 = 5433;
/// How soon an Event must exist: the daemon checks every 5 s, and retries after pauses.
const SOON: Duration = Duration::from_secs(30);

pub fn run(cases: &mut Cases) {
    let mut case = |name: &str, body: fn(&Env) -> Result<()>| {
        cases.case_in(name, |cases| body(&start(cases)?));
    };
    case("events/probe-fails-and-recovers", failing);
    case("events/mistake-in-a-probe", mistake);
    case("events/port-hidden-by-the-mesh", hidden);
    case("events/api-away", away);
    case("events/forbidden", forbidden);
}

/// A node whose daemon may do what component `events` allows.
fn start(cases: &mut Cases) -> Result<Env> {
    let run = Arc::new(Run::new()?);
    let node = Node::start(&run, "node")?;
    let rule = json!({"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]});
    node.api.order(|server| server.allow(None, &[rule]))?;
    Env::on(cases, run, node, &["--events"])
}

fn spec(name: &str, probes: impl IntoIterator<Item = Value>) -> PodSpec {
    let app = AppSpec::new().http(HTTP).tcp(OPEN);
    let spec = PodSpec::new(name).rules(RuleSet::IstioRedirect).app(app);
    declare(spec, probes)
}

/// Waits for an Event of `pod` with this reason.
fn event(env: &Env, pod: &NodePod, reason: &str) -> Result<Value> {
    let mut last = Vec::new();
    let found = wait::until(&format!("an Event {reason}"), SOON, || {
        last = env.node.api.order(|server| server.all("events")).ok()?;
        let of_pod = |event: &&Value| {
            event["involvedObject"]["uid"] == pod.uid() && event["reason"] == reason
        };
        last.iter().find(of_pod).cloned()
    });
    found.with_context(|| format!("{last:#?}"))
}

/// A pod that runs, except its app.
fn without_app(env: &Env, spec: PodSpec) -> Result<NodePod> {
    let mut pod = env.node.bind(spec)?;
    pod.start_sandbox(Order::NetworkFirst)?;
    pod.start_sidecar()?;
    pod.report_running()?;
    env.served(&pod)?;
    Ok(pod)
}

fn failing(env: &Env) -> Result<()> {
    let mut pod = without_app(env, spec("flips", [http_get(HTTP, "/healthy")]))?;
    let probe = Probe::http(pod.ns()?.ipv4(), HTTP, "/healthy");
    let _fails = env.until("the probe to fail", &probe, false)?;
    let failed = event(env, &pod, "ProbeFailed")?;
    let message = failed["message"].as_str().unwrap_or_default();
    ensure!(
        message.starts_with("liveness http:8080/healthy: ") && message.contains("(refused)"),
        "{failed}"
    );
    ensure!(
        failed["type"] == "Warning" && failed["source"]["host"] == env.node.name(),
        "{failed}"
    );
    // The same failure again causes no new Event.
    for _ in 0..3 {
        let _fails = env.until("the probe to fail", &probe, false)?;
    }
    pod.start_app()?;
    let _passes = env.until("the probe to pass", &probe, true)?;
    let recovered = event(env, &pod, "ProbeRecovered")?;
    ensure!(recovered["type"] == "Normal", "{recovered}");
    let failed = event(env, &pod, "ProbeFailed")?;
    ensure!(failed["count"] == 1, "{failed}");
    let sent = env.daemon.metrics()?;
    let sent = sent.sum("probe_handler_events_total", &[("outcome", "sent")]);
    ensure!(sent == 2.0, "{sent}");
    Ok(())
}

fn mistake(env: &Env) -> Result<()> {
    let spec = spec(
        "typo",
        [
            http_get(HTTP, "/healthy"),
            json!({"tcpSocket": {"port": "htpp"}}),
        ],
    );
    let pod = without_app(env, spec)?;
    let left = event(env, &pod, "ProbesNotServed")?;
    let message = left["message"].as_str().unwrap_or_default();
    ensure!(message.contains("\"htpp\""), "{left}");
    Ok(())
}

fn hidden(env: &Env) -> Result<()> {
    let mut probe = tcp_socket(CLOSED);
    probe["periodSeconds"] = json!(1);
    let spec = spec("hidden", [probe]).label("probe-handler.io/mode", "observe");
    let mut pod = env.node.bind(spec)?;
    pod.run()?;
    let hidden = event(env, &pod, "PortHiddenByMesh")?;
    let message = hidden["message"].as_str().unwrap_or_default();
    ensure!(message.contains("tcp:5433"), "{hidden}");
    Ok(())
}

/// Probes are served as before, and the Event arrives when the API server is back.
fn away(env: &Env) -> Result<()> {
    let mut pod = without_app(env, spec("away", [http_get(HTTP, "/healthy")]))?;
    let probe = Probe::http(pod.ns()?.ipv4(), HTTP, "/healthy");
    env.node.api.stop()?;
    let _fails = env.until("the probe to fail", &probe, false)?;
    let _logged = env.daemon.wait_logged(&["cannot send Events"])?;
    pod.start_app()?;
    let _passes = env.until("the probe to pass", &probe, true)?;
    let probing = Probing::start(&env.kubelet, vec![probe]);
    probing.more(100)?;
    let failed = probing.stop()?;
    ensure!(failed.iter().all(|made| made.result.passed()), "{failed:?}");
    env.node.api.start_again()?;
    let _failed = event(env, &pod, "ProbeFailed")?;
    let _recovered = event(env, &pod, "ProbeRecovered")?;
    let log = env.daemon.log()?;
    let said = log.matches("cannot send Events").count();
    ensure!(said == 1, "the log says it {said} times");
    Ok(())
}

fn forbidden(env: &Env) -> Result<()> {
    env.node.api.order(|server| server.forbid("events", true))?;
    let pod = without_app(env, spec("refused", [http_get(HTTP, "/healthy")]))?;
    let probe = Probe::http(pod.ns()?.ipv4(), HTTP, "/healthy");
    let _fails = env.until("the probe to fail", &probe, false)?;
    let _logged = env
        .daemon
        .wait_logged(&["cannot send Events", "component events"])?;
    Ok(())
}
