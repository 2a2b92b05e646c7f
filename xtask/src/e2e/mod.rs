//! `cargo xtask e2e`: tests the daemon in a cluster, with its unmodified manifests, a real kubelet and pods of a
//! STRICT mesh. docs/e2e.md describes requirements and checks.

mod cases;
mod images;
mod kubectl;
mod manifests;
mod pod_status;
mod report;
mod table;

use std::env;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell::root;
use cases::Suite;
use kubectl::Kubectl;
use manifests::{NAMESPACE, Place};
use report::Report;

/// Exit code without a cluster (`EX_UNAVAILABLE` of sysexits.h).
const NO_CLUSTER: u8 = 69;

/// The daemon's namespace in deploy/.
const SYSTEM: &str = "probe-handler-system";

/// Options of `e2e`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Command that loads an image onto the nodes; {} is the path of its archive [default: none, the images
    /// are already on the nodes]
    #[arg(long, env = "PROBE_HANDLER_E2E_LOAD", value_name = "COMMAND")]
    load: Option<String>,
    /// Kustomization to install with `kubectl apply -k`
    #[arg(long, default_value = "deploy", value_name = "DIRECTORY")]
    deploy: String,
    /// Context of the kubeconfig [default: the current one]
    #[arg(long)]
    context: Option<String>,
    /// Name or path of kubectl
    #[arg(long, default_value = "kubectl", value_name = "COMMAND")]
    kubectl: String,
    /// Node for the test's pods [default: the first ready node]
    #[arg(long)]
    node: Option<String>,
    /// Also start this many pods at once, first without and then with a mesh; the node must have capacity for them
    #[arg(long, default_value_t = 0, value_name = "PODS")]
    crowd: usize,
    /// Do not remove pods and daemon at the end
    #[arg(long)]
    keep: bool,
}

/// Runs all checks; exit code 0 if all pass, 1 if one fails, 69 if there is no cluster.
pub fn run(args: &Args) -> Result<ExitCode> {
    let kubectl = Kubectl::new(args.kubectl.clone(), args.context.clone());
    if let Err(why) = at_hand(args, &kubectl) {
        println!("e2e: no cluster, nothing was tested: {why:#}");
        println!("e2e: set KUBECONFIG to the cluster's kubeconfig, see docs/e2e.md");
        return Ok(ExitCode::from(NO_CLUSTER));
    }
    refuse_what_is_not_ours(&kubectl)?;
    let node = match &args.node {
        Some(node) => node.clone(),
        None => first_ready_node(&kubectl)?,
    };
    if let Some(load) = &args.load {
        images::build_and_load(load)?;
    }
    let place = Place {
        node,
        image: images::TESTBED.to_owned(),
    };
    println!("e2e: on node {}", place.node);
    let start = Instant::now();
    let mut report = Report::default();
    let overlay = root().join(&args.deploy).display().to_string();
    let outcome = kubectl.create(&[manifests::namespace()]).and_then(|()| {
        test(
            Suite {
                kubectl: &kubectl,
                place: &place,
                overlay: &overlay,
                report: &mut report,
            },
            args,
        )
    });
    if let Err(error) = outcome {
        report.add("all-of-it", Err(error));
    }
    if !args.keep {
        report.add("everything-removed", clean(&kubectl, &overlay));
    }
    println!("e2e: {} s\n{}", start.elapsed().as_secs(), report.counts());
    Ok(match report.counts().failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn test(mut suite: Suite<'_>, args: &Args) -> Result<()> {
    suite.without_daemon()?;
    suite.install_daemon()?;
    suite.verdicts()?;
    suite.other_processes()?;
    suite.upgrade()?;
    suite.crashes()?;
    suite.last_hook()?;
    if args.crowd > 0 {
        suite.many_pods(args.crowd)?;
    }
    if !args.keep {
        suite.without_any_daemon()?;
        suite.remove_daemon()?;
    }
    Ok(())
}

/// Requires that the user names the cluster, because the one in ~/.kube/config may be any cluster.
fn at_hand(args: &Args, kubectl: &Kubectl) -> Result<()> {
    if env::var_os("KUBECONFIG").is_none_or(|value| value.is_empty()) && args.context.is_none() {
        bail!("neither KUBECONFIG nor --context is given");
    }
    kubectl.reachable()
}

/// Refuses to test if a daemon is already installed; removes the test namespace of a killed run.
fn refuse_what_is_not_ours(kubectl: &Kubectl) -> Result<()> {
    let there = |name: &str| -> Result<bool> {
        let found = kubectl.run(
            &["get", "namespace", name, "--ignore-not-found", "-o", "name"],
            "",
        )?;
        Ok(!found.trim().is_empty())
    };
    if there(SYSTEM)? {
        bail!(
            "namespace {SYSTEM} is there: this test installs probe-handler itself, and removes it; if it \
             is a killed run's, `kubectl delete -k deploy` first"
        );
    }
    if there(NAMESPACE)? {
        kubectl.run(&["delete", "namespace", NAMESPACE, "--wait=true"], "")?;
    }
    Ok(())
}

fn first_ready_node(kubectl: &Kubectl) -> Result<String> {
    let list = kubectl.get(&["nodes", "-l", "kubernetes.io/os=linux"])?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let ready = items.iter().find(|node| is_ready(node));
    ready
        .and_then(|node| node["metadata"]["name"].as_str())
        .map(str::to_owned)
        .context("no node is ready and schedulable")
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.is_some_and(|all| {
        all.iter()
            .any(|one| one["type"] == "Ready" && one["status"] == "True")
    });
    ready && node["spec"]["unschedulable"] != true
}

fn clean(kubectl: &Kubectl, overlay: &str) -> Result<()> {
    let gone = ["delete", "--ignore-not-found", "--wait=true"];
    let mut daemon = gone.to_vec();
    daemon.extend(["-k", overlay]);
    kubectl.run(&daemon, "")?;
    let mut pods = gone.to_vec();
    pods.extend(["namespace", NAMESPACE]);
    kubectl.run(&pods, "").map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_fit_if_it_is_ready_and_not_cordoned() {
        let node = |ready: &str, unschedulable: bool| {
            json!({
                "spec": {"unschedulable": unschedulable},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        assert!(is_ready(&node("True", false)));
        assert!(!is_ready(&node("False", false)));
        assert!(!is_ready(&node("Unknown", false)));
        assert!(!is_ready(&node("True", true)));
        assert!(!is_ready(&json!({})));
    }
}
