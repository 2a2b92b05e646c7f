//! Mode observe: the kubelet gets the same results as without the daemon, and the daemon reports which would change.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cases::Cases;
use super::env::Env;
use super::pod_pair::{declare, grpc_of, http_get, tcp_socket};
use crate::app::AppSpec;
use crate::command;
use crate::kubelet::Probe;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::wait;

const HTTP: u16 = 8080;
const GRPC: u16 = 9090;
const OPEN: u16 = 5432;
const CLOSED: u16 = 5433;

/// How soon every probe has been compared: its period and its timeout.
const SOON: Duration = Duration::from_secs(20);

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &["--mode", "observe"])?;
    let mut pod = spec("watched").start(&env.run)?;
    pod.publish(env.daemon.pods())?;
    let compared = wait::until("all probes to be compared", SOON, || {
        let pod = observed(&env, "watched").ok()??;
        let compared = |probe: &Value| probe["compared"].as_u64() > Some(0);
        let all = pod["probes"].as_array()?.iter().all(compared);
        all.then_some(pod)
    })
    .with_context(|| format!("{:?}", observed(&env, "watched")));
    cases.case("changes", || changes(&compared?));
    cases.case("the-kubelet-gets-the-same-results", || {
        unchanged(&env, &pod)
    });
    cases.case("no-rules-in-the-pod-and-no-endpoints", || {
        untouched(&env, &pod)
    });
    cases.case("metrics", || metrics(&env));
    cases.case("command-line", || command_line(&env));
    cases.case("a-label-decides", || label(&env));
    cases.case("a-pod-that-ends-is-forgotten", || forgotten(&env, &mut pod));
    Ok(())
}

/// A pod under STRICT with probes of which some would have another result.
fn spec(name: &str) -> PodSpec {
    let app = AppSpec::new().http(HTTP).grpc(GRPC).tcp(OPEN);
    let spec = PodSpec::new(name).rules(RuleSet::IstioRedirect).app(app);
    let probes = [
        http_get(HTTP, "/healthy"),
        http_get(HTTP, "/failing"),
        grpc_of(GRPC, "ok"),
        tcp_socket(OPEN),
        tcp_socket(CLOSED),
    ];
    declare(spec, probes.map(every_second))
}

fn every_second(mut probe: Value) -> Value {
    probe["periodSeconds"] = json!(1);
    probe["failureThreshold"] = json!(3);
    probe
}

/// The daemon's report about an observed pod.
fn observed(env: &Env, name: &str) -> Result<Option<Value>> {
    let status = env.daemon.status()?;
    let pods = status["observed"].as_array().cloned().unwrap_or_default();
    Ok(pods.into_iter().find(|pod| pod["name"] == name))
}

/// The mesh rejects the plaintext of probes of a healthy app, and accepts connections to a closed port.
fn changes(pod: &Value) -> Result<()> {
    for (check, change, consequence) in [
        (
            "http:8080/healthy",
            "cured",
            Some("would no longer be restarted (connection_closed)"),
        ),
        ("http:8080/failing", "none", None),
        ("grpc:9090/ok", "cured", Some("would count as started")),
        ("tcp:5432", "none", None),
        (
            "tcp:5433",
            "exposed",
            Some("would be unready, and get no traffic, after 3 s (refused)"),
        ),
    ] {
        let probes = pod["probes"].as_array().into_iter().flatten();
        let mut found = probes.filter(|probe| probe["check"] == check);
        let probe = found.next().context(check)?;
        ensure!(probe["change"] == change, "{check}: {probe}");
        let text = probe["consequence"].as_str();
        ensure!(
            text.is_some() == consequence.is_some()
                && text
                    .unwrap_or_default()
                    .starts_with(consequence.unwrap_or_default()),
            "{check}: {probe}"
        );
    }
    Ok(())
}

/// The results are those without the daemon: under STRICT the HTTP probe fails, and the closed port seems
/// open.
fn unchanged(env: &Env, pod: &Pod) -> Result<()> {
    let ip = pod.ns.ipv4();
    let _mesh = env.fails(&Probe::http(ip, HTTP, "/healthy"))?;
    let _open = env.passes(&Probe::tcp(ip, CLOSED))?;
    let _v6 = env.passes(&Probe::tcp(pod.ns.ipv6(), CLOSED))?;
    Ok(())
}

fn untouched(env: &Env, pod: &Pod) -> Result<()> {
    let tables = pod
        .ns
        .run(|| command::run("nft", &["list", "tables"], ""))?;
    let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
    ensure!(!tables.contains("probe_handler"), "{tables}");
    let endpoints = env.daemon.metric("probe_handler_endpoints")?;
    ensure!(endpoints == 0.0, "{endpoints} endpoints");
    let seen = env.daemon.counter("seen")?;
    ensure!(seen == 0, "{seen} connections seen");
    Ok(())
}

fn metrics(env: &Env) -> Result<()> {
    let scrape = env.daemon.metrics()?;
    for (from, to, reason) in [
        ("failure", "success", "connection_closed"),
        ("success", "failure", "refused"),
    ] {
        let labels = [("from", from), ("to", to), ("reason", reason)];
        let count = scrape.sum("probe_handler_would_change_total", &labels);
        ensure!(count > 0.0, "{labels:?}: {count}");
    }
    Ok(())
}

fn command_line(env: &Env) -> Result<()> {
    let text = env.daemon.status_command(&["--changes"])?;
    for part in [
        "testbed/watched",
        "tcp:5433 exposed: passes now and would fail; would be unready",
        "http:8080/healthy cured: fails now and would pass",
        "5 probes of 1 pods observed: 1 exposed, 2 cured",
    ] {
        ensure!(text.contains(part), "no {part:?} in: {text}");
    }
    ensure!(!text.contains("/failing"), "{text}");
    Ok(())
}

/// A pod that is labelled to be served is, while the daemon observes the others.
fn label(env: &Env) -> Result<()> {
    let pod = env.pod(spec("served").label("probe-handler.io/mode", "serve"))?;
    let ip = pod.ns.ipv4();
    let _served = env.passes(&Probe::http(ip, HTTP, "/healthy"))?;
    let _refused = env.fails(&Probe::tcp(ip, CLOSED))?;
    ensure!(
        observed(env, "served")?.is_none(),
        "both served and observed"
    );
    Ok(())
}

fn forgotten(env: &Env, pod: &mut Pod) -> Result<()> {
    pod.withdraw()?;
    wait::until("the pod to be forgotten", SOON, || {
        observed(env, "watched").ok()?.is_none().then_some(())
    })
    .map(drop)
}
