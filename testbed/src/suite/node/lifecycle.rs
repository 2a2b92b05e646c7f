//! A pod's lifecycle from binding to deletion, with events in the normal order and in others.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use super::env::{Env, QUIET};
use crate::kubelet::Probe;
use crate::node::{Bound, NodePod, Order};
use crate::suite::cases::Cases;
use crate::suite::sample_pod::{self, HTTP};
use crate::wait;

pub fn run(cases: &mut Cases, env: &Env) {
    for (name, order) in [
        ("network-first", Order::NetworkFirst),
        ("process-first", Order::ProcessFirst),
    ] {
        cases.case(&format!("start/{name}"), || start(env, name, order));
    }
    cases.case("restart-of-a-container", || restart(env));
    cases.case("sandbox-made-anew", || made_anew(env));
    cases.case("terminating", || terminating(env));
    cases.case("deleted-by-force", || by_force(env));
    cases.case("status-before-sandbox", || status_first(env));
    cases.case("sandbox-before-spec", || sandbox_first(env));
    cases.case("bound-after-it-was-made", || bound_late(env));
    cases.case("told-twice", || told_twice(env));
}

fn at(pod: &NodePod) -> Result<SocketAddr> {
    Ok(SocketAddr::new(pod.ns()?.ipv4().into(), HTTP))
}

/// The endpoint exists before the first app process runs, and the first probe has the correct result.
fn start(env: &Env, name: &str, order: Order) -> Result<()> {
    let mut pod = env.node.bind(sample_pod::pod(name))?;
    pod.make_cgroup()?;
    pod.start_sandbox(order)?;
    let waited = env.endpoint(&pod, true)?;
    println!("     the endpoint stood {waited:?} after the sandbox was ready");
    pod.start_containers()?;
    env.check_verdicts(&pod)?;
    pod.report_running()?;
    env.served(&pod)?;
    env.check_verdicts(&pod)?;
    pod.end()?;
    env.gone(name)
}

/// The app's container ends and restarts: only the results of its probes change.
fn restart(env: &Env) -> Result<()> {
    let mut pod = env.pod(sample_pod::pod("restarting"))?;
    let probe = Probe::http(pod.ns()?.ipv4(), HTTP, "/healthy");
    drop(pod.sandbox()?.app.take());
    for _ in 0..5 {
        let result = env.kubelet.probe(&probe)?;
        ensure!(!result.passed(), "a dead app looks healthy: {result:?}");
    }
    ensure!(env.endpoints()?.has(at(&pod)?)?, "the endpoint went");
    pod.start_app()?;
    env.check_verdicts(&pod)
}

/// The container runtime has lost the sandbox, and creates a new one with a new namespace and address.
fn made_anew(env: &Env) -> Result<()> {
    let mut pod = env.pod(sample_pod::pod("phoenix"))?;
    let old = at(&pod)?;
    pod.stop()?;
    env.stands(old, false)?;
    pod.start_sandbox(Order::NetworkFirst)?;
    ensure!(at(&pod)? != old, "the same address");
    // The pod's status still has the old address.
    pod.start_containers()?;
    pod.report_running()?;
    let waited = env.endpoint(&pod, true)?;
    println!("     served {waited:?} after the kubelet told the new address");
    env.check_verdicts(&pod)
}

/// Deleted, but still running: the kubelet continues readiness probes until the containers stop.
fn terminating(env: &Env) -> Result<()> {
    let mut pod = env.pod(sample_pod::pod("leaving"))?;
    let address = at(&pod)?;
    pod.terminate()?;
    wait::pass(QUIET)?;
    env.check_verdicts(&pod)?;
    pod.stop()?;
    env.stands(address, false)?;
    ensure!(
        env.daemon.pod_status("leaving")?.is_some(),
        "forgotten before it was deleted"
    );
    pod.end()?;
    env.gone("leaving")
}

/// The object is removed first (`kubectl delete --force`), and the containers still run for a while.
fn by_force(env: &Env) -> Result<()> {
    let mut pod = env.pod(sample_pod::pod("forced"))?;
    let address = at(&pod)?;
    pod.delete()?;
    env.stands(address, false)?;
    env.gone("forced")?;
    env.check_mesh_only(&pod)
}

/// The API server reports that the pod runs and has an address before anything exists on the node.
fn status_first(env: &Env) -> Result<()> {
    let mut pod = env.node.bind(sample_pod::pod("announced"))?;
    let (_, ipv4, ipv6) = env.run.next_pod_ips();
    pod.update(|object| {
        object["status"] = serde_json::json!({
            "phase": "Running", "podIP": ipv4, "podIPs": [{"ip": ipv4}, {"ip": ipv6}],
        });
    })?;
    wait::pass(QUIET)?;
    let stands = env.endpoints()?.has(SocketAddr::new(ipv4.into(), HTTP))?;
    ensure!(!stands, "an endpoint of a pod without a namespace");
    pod.start_sandbox_at(Order::NetworkFirst, Some((ipv4, ipv6)))?;
    let _waited = env.endpoint(&pod, true)?;
    pod.start_containers()?;
    env.check_verdicts(&pod)
}

/// The node is ahead of the API server's watch.
fn sandbox_first(env: &Env) -> Result<()> {
    let spec = sample_pod::pod("unheard-of");
    let mut pod = env.node.bind_as(Bound::new(spec).unscheduled())?;
    pod.start_sandbox(Order::NetworkFirst)?;
    pod.start_containers()?;
    env.check_mesh_only(&pod)?;
    pod.schedule()?;
    let waited = env.endpoint(&pod, true)?;
    println!("     served {waited:?} after it was told");
    env.check_verdicts(&pod)
}

/// A pod on another node is not served; the daemon does not receive it at all.
fn bound_late(env: &Env) -> Result<()> {
    let spec = sample_pod::pod("elsewhere");
    let pod = env.node.bind_as(Bound::new(spec).unscheduled())?;
    wait::pass(QUIET)?;
    ensure!(
        env.daemon.pod_status(pod.name())?.is_none(),
        "a pod of no node is known"
    );
    Ok(())
}

/// A repeated update changes nothing: no endpoint is removed, not even briefly.
fn told_twice(env: &Env) -> Result<()> {
    let mut pod = env.pod(sample_pod::pod("echoed"))?;
    let before = env.daemon.status()?["counters"]["seen"].as_u64();
    for round in 0..50_u32 {
        pod.update(|object| {
            object["metadata"]["labels"] = serde_json::json!({"round": round.to_string()})
        })?;
        ensure!(env.endpoints()?.has(at(&pod)?)?, "the endpoint went");
    }
    env.check_verdicts(&pod)?;
    let after = env.daemon.status()?["counters"]["seen"].as_u64();
    ensure!(
        after.context("counters")? > before.context("counters")?,
        "not seen"
    );
    Ok(())
}
