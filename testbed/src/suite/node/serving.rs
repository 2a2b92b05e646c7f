//! Whether and how a pod's probes are served, depending on rewritten probes and on annotations and their
//! changes.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::env::{Env, SOON};
use crate::command;
use crate::kubelet::Probe;
use crate::node::{NodePod, namespace};
use crate::pace;
use crate::pod::PodSpec;
use crate::rules::RuleSet;
use crate::suite::cases::Cases;
use crate::suite::env::has_kernel_path;
use crate::suite::sample_pod::{self, HTTP};
use crate::wait;
use kernel::exemption::TABLE;

const LIVE: &str = "/app-health/web/livez";
const READY: &str = "/app-health/web/readyz";
/// An answer that only the stand-in pilot-agent gives.
const AGENTS_MARK: &str = "X-Pilot-Agent";
const STATUS_PORT: &str = "status.sidecar.istio.io/port";

pub fn run(cases: &mut Cases, env: &Env) {
    cases.case("takeover", || taken_over(env, "taken-over", 15020, None));
    cases.case("takeover/other-status-port", || {
        taken_over(env, "other-port", 15999, Some("15999"))
    });
    for (name, value) in [
        ("zero", "0"),
        ("nonsense", "fifteen"),
        ("too-large", "99999"),
    ] {
        cases.case(&format!("takeover/status-port-{name}"), || {
            not_taken_over(env, &format!("port-{name}"), value)
        });
    }
    cases.case("takeover/malformed-originals", || malformed(env));
    cases.case("rewrite", || rewritten(env));
    cases.case("mode/pod", || mode_of_pod(env));
    cases.case("mode/namespace", || mode_of_namespace(env));
}

fn probed(port: u16) -> serde_json::Value {
    sample_pod::container(
        "web",
        sample_pod::http(port, LIVE),
        sample_pod::http(port, READY),
    )
}

fn app() -> crate::app::AppSpec {
    crate::app::AppSpec::new().http(HTTP)
}

/// A pod as Istio's injector writes it.
fn injected(name: &str, port: u16) -> PodSpec {
    PodSpec::new(name)
        .rules(RuleSet::IstioRedirect)
        .app(app())
        .container(probed(port))
        .istio_prober(LIVE, sample_pod::http(HTTP, "/healthy"))
        .istio_prober(READY, sample_pod::http(HTTP, "/failing"))
}

fn way(env: &Env, pod: &NodePod) -> Result<String> {
    let status = env.daemon.pod_status(pod.name())?.context("not known")?;
    let rows = status["probes"].as_array().context("probes")?;
    let ways = rows.iter().filter_map(|row| row["mode"].as_str());
    Ok(ways.collect::<Vec<_>>().join(" "))
}

/// Both rewritten probes have correct results that do not come from pilot-agent.
fn ours(env: &Env, pod: &NodePod, port: u16) -> Result<()> {
    for ip in pod.ns()?.ips() {
        for (path, status) in [(LIVE, 200), (READY, 503)] {
            let result = env.kubelet.probe(&Probe::http(ip, port, path))?;
            ensure!(
                result.status == Some(status) && !result.head.contains(AGENTS_MARK),
                "{path}: {result:?}"
            );
        }
    }
    Ok(())
}

fn taken_over(env: &Env, name: &str, port: u16, annotation: Option<&str>) -> Result<()> {
    let spec = match annotation {
        None => injected(name, port),
        Some(value) => injected(name, port).annotation(STATUS_PORT, value),
    };
    let pod = env.pod(spec)?;
    ensure!(
        way(env, &pod)? == "takeover takeover",
        "{}",
        way(env, &pod)?
    );
    ours(env, &pod, port)
}

/// Istio's injector creates such pods (with probes on port 0, which the API server refuses) or leaves probes
/// on its default port: the daemon takes nothing over, and pilot-agent gets the probes as before.
fn not_taken_over(env: &Env, name: &str, value: &str) -> Result<()> {
    let pod = env.pod(injected(name, 15020).annotation(STATUS_PORT, value))?;
    ensure!(!way(env, &pod)?.contains("takeover"), "{}", way(env, &pod)?);
    let ip = pod.ns()?.ipv4();
    for (path, status) in [(LIVE, 200), (READY, 503)] {
        let result = env.kubelet.probe(&Probe::http(ip, 15020, path))?;
        ensure!(result.status == Some(status), "{path}: {result:?}");
    }
    if value != "0" {
        let _said = env.problem(&[&format!("testbed/{name}"), STATUS_PORT, value])?;
    }
    Ok(())
}

/// Entries that the daemon can't parse stay with pilot-agent, which can't parse them either.
fn malformed(env: &Env) -> Result<()> {
    let good = env.pod(sample_pod::pod("beside-malformed"))?;
    let mut pod = env.node.bind(injected("malformed", 15020))?;
    pod.update(|object| {
        let containers = object["spec"]["containers"].as_array_mut();
        for container in containers.into_iter().flatten() {
            if container["name"] == "istio-proxy" {
                container["env"][0]["value"] = json!("{\"/app-health/web/livez\": {");
            }
        }
    })?;
    pod.run()?;
    let _said = env.problem(&["testbed/malformed", "ISTIO_KUBE_APP_PROBERS", "not a JSON"])?;
    env.check_verdicts(&good)?;
    pod.end()?;
    env.no_problem()
}

fn rewritten(env: &Env) -> Result<()> {
    let originals = json!({
        LIVE: sample_pod::http(HTTP, "/healthy"),
        READY: sample_pod::http(HTTP, "/failing"),
    });
    let spec = PodSpec::new("rewritten")
        .rules(RuleSet::IstioRedirect)
        .app(app())
        .container(probed(15020))
        .annotation("probe-handler.io/probes", &originals.to_string());
    let pod = env.pod(spec)?;
    ensure!(way(env, &pod)? == "rewrite rewrite", "{}", way(env, &pod)?);
    ours(env, &pod, 15020)
}

/// The label is added, changed and removed while the pod runs.
fn mode_of_pod(env: &Env) -> Result<()> {
    const MODE: &str = "probe-handler.io/mode";
    let mut pod = env.pod(sample_pod::pod("moody"))?;
    let probe = Probe::http(pod.ns()?.ipv4(), HTTP, "/healthy");
    for (value, served) in [
        (Some("off"), false),
        (Some("serve"), true),
        (Some("maybe"), true),
        (Some("observe"), false),
        (None, true),
    ] {
        pod.update(|object| match value {
            Some(value) => object["metadata"]["labels"][MODE] = json!(value),
            None => drop(
                object["metadata"]["labels"]
                    .as_object_mut()
                    .and_then(|labels| labels.remove(MODE)),
            ),
        })?;
        let what = format!("{MODE}={value:?} to take effect");
        let _result = env.until(&what, &probe, served)?;
        rules_are(&pod, served)?;
        if value == Some("maybe") {
            let _said = env.problem(&["testbed/moody", MODE, "maybe"])?;
        }
    }
    env.no_problem()?;
    env.check_verdicts(&pod)
}

/// Our rules are in a pod only while it is served.
fn rules_are(pod: &NodePod, there: bool) -> Result<()> {
    let there = there && has_kernel_path();
    let ns = pod.ns()?;
    wait::until("our rules to follow the mode", SOON, || {
        let list = ns.run(|| command::run("nft", &["list", "tables"], ""));
        let tables = String::from_utf8_lossy(&list.ok()?.stdout).into_owned();
        (tables.contains(TABLE) == there).then_some(())
    })
}

/// The same on its namespace; the pod's own label has precedence.
fn mode_of_namespace(env: &Env) -> Result<()> {
    let mark = |value| env.node.api.put("namespaces", namespace("testbed", value));
    let pod = env.pod(sample_pod::pod("follower"))?;
    let own = env.pod(sample_pod::pod("own-mind").label("probe-handler.io/mode", "serve"))?;
    let probe = Probe::http(pod.ns()?.ipv4(), HTTP, "/healthy");
    for (value, served) in [(Some("off"), false), (Some("serve"), true), (None, true)] {
        mark(value)?;
        let begun = std::time::Instant::now();
        let what = format!("a namespace's {value:?} to take effect");
        let _result = env.until(&what, &probe, served)?;
        ensure!(
            begun.elapsed() < pace::stretch(SOON),
            "late: {:?}",
            begun.elapsed()
        );
        env.check_verdicts(&own)?;
    }
    env.check_verdicts(&pod)
}
