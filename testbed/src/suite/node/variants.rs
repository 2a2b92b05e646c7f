//! Unusual pods, and nodes with other cgroup layouts.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::env::{Env, QUIET};
use crate::node::{Bound, Node, usable_hierarchies};
use crate::rules::RuleSet;
use crate::run::Run;
use crate::suite::cases::Cases;
use crate::suite::sample_pod::{self, HTTP};
use crate::wait;

/// The hash of a static pod's manifest, by which the kubelet and the runtime identify the pod.
const HASH: &str = "5f0c9a1e2b3d4c5f6a7b8c9d0e1f2a3b";

pub fn run(cases: &mut Cases, env: &Env) {
    cases.case("mirror-pod", || mirror(env));
    cases.case("host-network", || host_network(env));
    for mesh in [RuleSet::IstioAmbient, RuleSet::Linkerd, RuleSet::Consul] {
        cases.case(&format!("mesh/{}", mesh.name()), || of_mesh(env, mesh));
    }
}

/// Nodes with other cgroup layouts, each with its own daemon.
pub fn layouts(cases: &mut Cases) -> Result<()> {
    let all = usable_hierarchies()?;
    let (v2, v1) = all.split_first().context("no cgroup hierarchy")?;
    for (name, mount) in [("v2", Some(v2)), ("v1", v1.first())] {
        let case = format!("layout/{name}");
        match mount {
            Some(mount) => cases.case_in(&case, |cases| layout(cases, mount)),
            None => cases.skip(&case, "no cgroup v1 hierarchy is mounted"),
        }
    }
    Ok(())
}

fn mirror(env: &Env) -> Result<()> {
    let bound = Bound::new(sample_pod::pod("static")).mirror(HASH);
    let mut pod = env.node.bind_as(bound)?;
    pod.run()?;
    env.served(&pod)?;
    let status = env.daemon.pod_status("static")?.context("not known")?;
    ensure!(status["uid"] == HASH, "known by {}", status["uid"]);
    env.check_verdicts(&pod)?;
    pod.end()?;
    env.gone("static")
}

/// A pod in the host network has the node's addresses: the daemon serves none of its probes.
fn host_network(env: &Env) -> Result<()> {
    let bound = Bound::new(sample_pod::pod("hostly")).host_network();
    let mut pod = env.node.bind_as(bound)?;
    pod.make_cgroup()?;
    let (_container, ()) = pod.idle_container(|| ())?;
    let (node4, node6) = env.run.node_ips();
    pod.update(|object| {
        object["status"] = serde_json::json!({
            "phase": "Running", "podIP": node4, "podIPs": [{"ip": node4}, {"ip": node6}],
        });
    })?;
    wait::pass(QUIET)?;
    for ip in [IpAddr::from(node4), node6.into()] {
        let stands = env.endpoints()?.has(SocketAddr::new(ip, HTTP))?;
        ensure!(!stands, "an endpoint at the node's address {ip}");
    }
    ensure!(
        env.daemon.pod_status("hostly")?.is_none(),
        "it counts as served: {}",
        env.said("hostly")
    );
    Ok(())
}

fn of_mesh(env: &Env, mesh: RuleSet) -> Result<()> {
    let pod = env.pod(sample_pod::pod(mesh.name()).rules(mesh))?;
    env.check_verdicts(&pod)
}

/// A node with only one hierarchy, with systemd's cgroup names.
fn layout(cases: &mut Cases, mount: &PathBuf) -> Result<()> {
    let run = Arc::new(Run::new()?);
    let node = Node::with_cgroups(&run, "layout", std::slice::from_ref(mount))?;
    let root = node.cgroups().first().context("no hierarchy")?.clone();
    let root = root.to_str().context("a path that is no text")?.to_owned();
    let env = Env::on(cases, run, node, &["--cgroup-root", &root])?;
    for (name, path) in [
        ("guaranteed", guaranteed as fn(&str) -> String),
        ("best-effort", best_effort),
    ] {
        let bound = Bound::new(sample_pod::pod(name)).cgroup(path);
        let mut pod = env.node.bind_as(bound)?;
        pod.run()?;
        env.served(&pod)?;
        sample_pod::check_verdicts(&env.kubelet, pod.ns()?.ipv4().into())?;
    }
    Ok(())
}

fn guaranteed(uid: &str) -> String {
    let uid = uid.replace('-', "_");
    format!("kubepods.slice/kubepods-pod{uid}.slice")
}

fn best_effort(uid: &str) -> String {
    let uid = uid.replace('-', "_");
    format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice")
}
