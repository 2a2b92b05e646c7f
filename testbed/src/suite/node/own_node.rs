//! `--node-condition` and `--startup-taint`: the changes that the daemon makes to its own Node object.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::env::Env;
use crate::node::Node;
use crate::run::Run;
use crate::suite::cases::Cases;
use crate::wait;

const TAINT: &str = "probe-handler.io/starting";
/// How soon the condition changes: a daemon that is no longer attached has five seconds.
const SOON: Duration = Duration::from_secs(30);

pub fn run(cases: &mut Cases) {
    cases.case_in("own-node/condition-and-taint", |cases| {
        let env = start(cases, true)?;
        serving(&env)?;
        not_attached(env)
    });
    cases.case_in("own-node/forbidden", |cases| {
        forbidden(&start(cases, false)?)
    });
}

/// A daemon on a node with two taints, with or without the rights of components `node-condition` and `startup-taint`.
fn start(cases: &mut Cases, allowed: bool) -> Result<Env> {
    let run = Arc::new(Run::new()?);
    let node = Node::start(&run, "node")?;
    if allowed {
        let rule = |resource: &str, verbs: &[&str]| json!({"apiGroups": [""], "resources": [resource], "verbs": verbs});
        let rules = [
            rule("nodes", &["get", "patch"]),
            rule("nodes/status", &["patch"]),
        ];
        node.api.order(|server| server.allow(None, &rules))?;
    }
    let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
    node.api.put(
        "nodes",
        json!({
            "metadata": {"name": node.name()},
            "spec": {"taints": [taint("other"), taint(TAINT)]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }),
    )?;
    let startup = format!("--startup-taint={TAINT}");
    Env::on(cases, run, node, &["--node-condition", &startup])
}

fn node(env: &Env) -> Result<Value> {
    let name = env.node.name();
    let found = env.node.api.order(|server| server.get("nodes", "", name))?;
    found.context("no node")
}

/// Waits until the condition has this status and reason; the kubelet's own condition stays.
fn until(env: &Env, status: &str, reason: &str) -> Result<Value> {
    let mut last = Value::Null;
    let found = wait::until(&format!("condition {status}, {reason}"), SOON, || {
        last = node(env).ok()?;
        let conditions = last["status"]["conditions"].as_array()?;
        let mut ours = conditions
            .iter()
            .filter(|one| one["type"] == "ProbeHandlerReady");
        let found = ours.next()?;
        let as_expected = found["status"] == status && found["reason"] == reason;
        (as_expected && conditions[0]["type"] == "Ready").then(|| found.clone())
    });
    found.with_context(|| format!("{last:#}"))
}

fn serving(env: &Env) -> Result<()> {
    let condition = until(env, "True", "Serving")?;
    ensure!(condition["lastTransitionTime"].is_string(), "{condition}");
    wait::until("the taint to be removed", SOON, || {
        let taints = node(env).ok()?["spec"]["taints"].take();
        (taints == json!([{"key": "other", "effect": "NoSchedule"}])).then_some(())
    })
}

/// The kubelet ends, and with it its cgroup.
fn not_attached(env: Env) -> Result<()> {
    let Env {
        daemon,
        kubelet,
        cgroup,
        node,
        run,
    } = env;
    drop(kubelet);
    drop(cgroup);
    let cgroup = crate::cgroup::Cgroup::new(&run, "other")?;
    let kubelet = Arc::new(crate::kubelet::Kubelet::start(&run, &cgroup, "other")?);
    let env = Env {
        daemon,
        kubelet,
        cgroup,
        node,
        run,
    };
    let condition = until(&env, "False", "KubeletNotAttached")?;
    ensure!(condition["message"].is_string(), "{condition}");
    Ok(())
}

/// The daemon still serves, and logs once which rights it lacks.
fn forbidden(env: &Env) -> Result<()> {
    let log = env
        .daemon
        .wait_logged(&["cannot write condition", "component node-condition"])?;
    let said = log.matches("cannot write condition").count();
    ensure!(said == 1, "the log says it {said} times");
    let (status, _) = env.daemon.get("/readyz")?;
    ensure!(status == 200, "{status}");
    Ok(())
}
