//! Invalid or huge pods: each is reported once, and none affects other pods.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::env::{Env, SOON};
use crate::kubelet::Probe;
use crate::node::{NodePod, Order};
use crate::suite::cases::Cases;
use crate::suite::sample_pod::{self, HTTP};
use crate::wait;

/// Number of containers of the largest pod, each with two probes on separate ports.
const CONTAINERS: u16 = 200;
const FIRST_PORT: u16 = 20_000;
/// How much 1 MiB of annotations may increase the daemon's memory permanently: the allocator keeps some freed memory.
const KEPT_KIB: u64 = 12 << 10;

pub fn run(cases: &mut Cases, env: &Env) -> Result<()> {
    let good = env.pod(sample_pod::pod("good"))?;
    cases.case("bad/no-address", || no_address(env, &good));
    cases.case("bad/status-disagrees", || disagreement(env, &good));
    cases.case("bad/namespace-vanishes-mid-check", || vanishes(env, &good));
    cases.case("bad/200-containers", || many_containers(env, &good));
    cases.case("bad/1-MiB-of-annotations", || annotations(env, &good));
    cases.case("bad/malformed-object", || malformed(env, &good));
    Ok(())
}

/// The number of Istio's pods in this state.
fn counted(env: &Env, state: &str) -> Result<f64> {
    let labels = [("mesh", "istio"), ("state", state)];
    Ok(env.daemon.metrics()?.sum("probe_handler_pods", &labels))
}

fn pending(env: &Env, pods: f64) -> Result<()> {
    wait::until(&format!("{pods} pods to count as pending"), SOON, || {
        let now = counted(env, "pending").ok()?;
        ((now - pods).abs() < f64::EPSILON).then_some(())
    })
}

/// A sandbox whose network is missing for long, and is then set up.
fn no_address(env: &Env, good: &NodePod) -> Result<()> {
    let mut pod = env.node.bind(sample_pod::pod("unplugged"))?;
    pod.start_sandbox(Order::NetworkFirst)?;
    let eth0 = pod.ns()?.ipv4();
    pod.ns()?.ip("address flush dev eth0\n")?;
    wait::until("the namespace to be found, without addresses", SOON, || {
        let status = env.daemon.pod_status("unplugged").ok()??;
        let none = status["addresses"].as_array()?.is_empty();
        (none && status["netns"]["known"].is_object()).then_some(())
    })?;
    pending(env, 1.0)?;
    let shown = env.daemon.status_command(&[])?;
    ensure!(
        shown.contains("unplugged is not served: no address"),
        "`status` does not show it:\n{shown}"
    );
    env.check_verdicts(good)?;
    pod.ns()?.ip(&format!("address add {eth0}/32 dev eth0\n"))?;
    let waited = env.endpoint(&pod, true)?;
    println!("     served {waited:?} after it had an address");
    pending(env, 0.0)?;
    // While it starts nothing is reported, because every pod is in this state for a moment.
    let log = env.daemon.log()?;
    ensure!(
        !log.contains("unplugged\" why"),
        "the log was quick to say so"
    );
    Ok(())
}

/// The API server reports another address than the namespace has: none is served.
fn disagreement(env: &Env, good: &NodePod) -> Result<()> {
    let mut pod = env.pod(sample_pod::pod("two-minds"))?;
    pod.update(|object| {
        object["status"]["podIP"] = json!("192.0.2.1");
        object["status"]["podIPs"] = json!([{"ip": "192.0.2.1"}]);
    })?;
    env.endpoint(&pod, false).map(drop)?;
    pending(env, 1.0)?;
    env.check_mesh_only(&pod)?;
    env.check_verdicts(good)?;
    pod.report_running()?;
    let _waited = env.endpoint(&pod, true)?;
    env.check_verdicts(&pod)
}

/// The namespace is removed before its app has answered.
fn vanishes(env: &Env, good: &NodePod) -> Result<()> {
    let spec = sample_pod::pod("vanishing").container(sample_pod::container(
        "slow",
        sample_pod::http(HTTP, "/slow?ms=60000"),
        sample_pod::http(HTTP, "/hang"),
    ));
    let (descriptors, _) = env.daemon.descriptors_and_threads()?;
    let mut pod = env.pod(spec)?;
    let ip = pod.ns()?.ipv4();
    let slow = ["/slow?ms=60000", "/hang"]
        .map(|path| Probe::http(ip, HTTP, path).timeout(Duration::from_secs(3)));
    let begun = Instant::now();
    let under_way = slow
        .iter()
        .map(|probe| env.kubelet.begin(probe))
        .collect::<Result<Vec<_>>>()?;
    wait::pass(Duration::from_millis(200))?;
    pod.end()?;
    env.check_verdicts(good)?;
    for probe in under_way {
        let result = probe.wait()?;
        ensure!(!result.passed(), "a pod that is gone passes: {result:?}");
    }
    println!(
        "     the checks under way ended after {:?}",
        begun.elapsed()
    );
    wait::until(
        "its descriptors to be closed",
        Duration::from_secs(5),
        || {
            let (now, _) = env.daemon.descriptors_and_threads().ok()?;
            (now <= descriptors).then_some(())
        },
    )?;
    env.check_verdicts(good)
}

fn many_containers(env: &Env, good: &NodePod) -> Result<()> {
    let mut spec = sample_pod::pod("crowded");
    let mut app = crate::app::AppSpec::new().http(HTTP);
    for index in 0..CONTAINERS {
        let port = FIRST_PORT + 2 * index;
        app = app.http(port);
        spec = spec.container(sample_pod::container(
            &format!("c{index}"),
            sample_pod::http(port, "/healthy"),
            sample_pod::http(port + 1, "/healthy"),
        ));
    }
    let pod = env.pod(spec.app(app))?;
    for index in [0, CONTAINERS / 2, CONTAINERS - 1] {
        let port = FIRST_PORT + 2 * index;
        for ip in pod.ns()?.ips() {
            let open = env.kubelet.probe(&Probe::http(ip, port, "/healthy"))?;
            let closed = env.kubelet.probe(&Probe::http(ip, port + 1, "/healthy"))?;
            ensure!(
                open.passed() && !closed.passed(),
                "{port}: {open:?}, {closed:?}"
            );
        }
    }
    env.check_verdicts(good)
}

fn resident(env: &Env) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", env.daemon.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse()?)
}

fn annotations(env: &Env, good: &NodePod) -> Result<()> {
    let before = resident(env)?;
    let mut pod = env.node.bind(sample_pod::pod("verbose"))?;
    pod.run()?;
    for round in 0..20_u32 {
        pod.update(|object| {
            for part in 0..4 {
                let text = format!("{round} {}", "x".repeat(256 << 10));
                object["metadata"]["annotations"][format!("example.org/part-{part}")] = json!(text);
            }
        })?;
    }
    env.served(&pod)?;
    env.check_verdicts(&pod)?;
    env.check_verdicts(good)?;
    let after = resident(env)?;
    println!("     the daemon's memory: {before} KiB before, {after} KiB after");
    ensure!(
        after < before + KEPT_KIB,
        "{before} KiB before, {after} KiB after"
    );
    Ok(())
}

/// An invalid object, which an API server should not send.
fn malformed(env: &Env, good: &NodePod) -> Result<()> {
    let mut pod = env.pod(sample_pod::pod("garbled"))?;
    let before = env.daemon.metric("probe_handler_unreadable_objects")?;
    let mut containers = Value::Null;
    pod.update(|object| {
        containers = object["spec"]["containers"].take();
        object["spec"]["containers"] = json!({"not": "a list"});
    })?;
    let _said = env.problem(&["Pod testbed/garbled", "spec.containers"])?;
    let now = env.daemon.metric("probe_handler_unreadable_objects")?;
    ensure!(now > before, "no metric says so");
    env.check_verdicts(good)?;
    pod.update(|object| object["spec"]["containers"] = containers)?;
    env.no_problem()?;
    env.served(&pod)?;
    env.check_verdicts(&pod)
}
