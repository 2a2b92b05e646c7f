//! `cargo xtask e2e`: the daemon in a cluster, with its manifests as they are, a real kubelet and pods of a
//! STRICT mesh. What it needs and does is told in docs/e2e.md.

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

/// There is no cluster to test in (`EX_UNAVAILABLE` of sysexits.h).
const NO_CLUSTER: u8 = 69;

/// Where deploy/ puts the daemon.
const SYSTEM: &str = "probe-handler-system";

/// Options of `e2e`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Command that brings an image to the nodes; {} is the path of its archive [without it: the images are
    /// there already]
    #[arg(long, env = "PROBE_HANDLER_E2E_LOAD", value_name = "COMMAND")]
    load: Option<String>,
    /// What to install, as `kubectl apply -k` takes it
    #[arg(long, default_value = "deploy", value_name = "DIRECTORY")]
    deploy: String,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long)]
    context: Option<String>,
    /// kubectl, if it is not in PATH by that name
    #[arg(long, default_value = "kubectl", value_name = "COMMAND")]
    kubectl: String,
    /// Node for the test's pods [default: the first that is ready]
    #[arg(long)]
    node: Option<String>,
    /// Start that many pods at once too, once without and once with a mesh; the node must have room for them
    #[arg(long, default_value_t = 0, value_name = "PODS")]
    crowd: usize,
    /// Leave pods and daemon where they are at the end
    #[arg(long)]
    keep: bool,
}

/// Runs it all; exit code 0 if all is well, 1 if something is not, 69 if there is no cluster.
pub fn run(args: &Args) -> Result<ExitCode> {
    let kubectl = Kubectl::new(args.kubectl.clone(), args.context.clone());
    if let Err(why) = at_hand(args, &kubectl) {
        println!("e2e: no cluster at hand, so nothing was tested: {why:#}");
        println!("e2e: set KUBECONFIG to a cluster's, see docs/e2e.md");
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
    suite.last_hook()?;
    if args.crowd > 0 {
        suite.many_pods(args.crowd)?;
    }
    if !args.keep {
        suite.remove_daemon()?;
    }
    Ok(())
}

/// A cluster that somebody named: the one in ~/.kube/config may be anything.
fn at_hand(args: &Args, kubectl: &Kubectl) -> Result<()> {
    if env::var_os("KUBECONFIG").is_none_or(|value| value.is_empty()) && args.context.is_none() {
        bail!("neither KUBECONFIG nor --context is given");
    }
    kubectl.reachable()
}

/// A daemon that is installed already is somebody's; a test namespace is a killed run's.
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
        .context("no node is ready and takes pods")
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
