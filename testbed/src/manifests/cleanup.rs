//! The rules of the design for the manifests that remove what the kernel path leaves on the nodes.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec, ServiceAccount};
use probe_handler::cli::Command;
use serde_json::Value;

use super::has;
use super::rules::{Rule, image_of, one, parsed};

/// All rules.
pub const RULES: &[(&str, Rule)] = &[
    ("a-pod-is-ready-once-everything-is-removed", order),
    ("sees-the-nodes-processes-and-bpf-file-system", node),
    ("on-every-node-even-a-full-one", everywhere),
    ("privileges-are-as-the-overlay-says", privileges),
    ("has-an-account-of-its-own-without-a-token", account),
    ("the-image-is-the-one-that-xtask-writes", image),
];

fn pod(objects: &[Value]) -> Result<PodSpec> {
    let daemon_set: DaemonSet = one(objects, "DaemonSet")?;
    let template = daemon_set.spec.context("no spec")?.template;
    template.spec.context("no pod")
}

fn containers(objects: &[Value]) -> Result<Vec<Container>> {
    let pod = pod(objects)?;
    let first = pod.init_containers.unwrap_or_default();
    Ok(first.into_iter().chain(pod.containers).collect())
}

/// The first container ends after the work; the second one stays.
fn order(_: &str, objects: &[Value]) -> Result<()> {
    let mut arguments = Vec::new();
    for container in containers(objects)? {
        let mut words = vec!["probe-handler".to_owned()];
        words.extend(container.args.unwrap_or_default());
        ensure!(
            matches!(parsed(&words)?, Command::Cleanup(_)),
            "{words:?} does not clean up"
        );
        arguments.push(words.split_off(2));
    }
    ensure!(
        arguments == [Vec::new(), vec!["--stay".to_owned()]],
        "the containers' arguments are {arguments:?}"
    );
    Ok(())
}

fn node(_: &str, objects: &[Value]) -> Result<()> {
    ensure!(pod(objects)?.host_pid == Some(true), "hostPID");
    for container in containers(objects)? {
        let mounts = container.volume_mounts.unwrap_or_default();
        ensure!(
            mounts
                .iter()
                .any(|mount| mount.mount_path == "/sys/fs/bpf" && mount.read_only != Some(true)),
            "{} does not mount the BPF file system",
            container.name
        );
    }
    Ok(())
}

fn everywhere(rendering: &str, objects: &[Value]) -> Result<()> {
    let tolerations = pod(objects)?.tolerations.unwrap_or_default();
    ensure!(
        tolerations
            .iter()
            .any(|one| one.operator.as_deref() == Some("Exists") && one.key.is_none()),
        "{rendering}: some taint is not tolerated"
    );
    let priority = pod(objects)?.priority_class_name;
    ensure!(
        priority.as_deref() == Some("system-node-critical"),
        "{rendering}: priorityClassName {priority:?}"
    );
    Ok(())
}

/// What looks into all pods' network namespaces needs, without CAP_SETUID, which the daemon needs for its dials.
fn privileges(rendering: &str, objects: &[Value]) -> Result<()> {
    let least = has(rendering, "least-privilege");
    for container in containers(objects)? {
        let security = container.security_context.context("no context")?;
        ensure!(security.privileged == Some(!least), "privileged");
        ensure!(security.run_as_user == Some(0), "runAsUser");
        let capabilities = security.capabilities.map(|set| (set.drop, set.add));
        let expected = least.then(|| {
            let list = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
            let added = ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"];
            (list(&["ALL"]), list(&added))
        });
        ensure!(capabilities == expected, "{capabilities:?}");
    }
    Ok(())
}

/// Pull secrets and OpenShift's security constraints are given to a ServiceAccount; the namespace's default one has neither.
fn account(_: &str, objects: &[Value]) -> Result<()> {
    let account: ServiceAccount = one(objects, "ServiceAccount")?;
    let pod = pod(objects)?;
    ensure!(
        pod.service_account_name.is_some() && pod.service_account_name == account.metadata.name,
        "the pod's account is {:?}",
        pod.service_account_name
    );
    let tokens = [
        account.automount_service_account_token,
        pod.automount_service_account_token,
    ];
    ensure!(tokens == [Some(false); 2], "a token is mounted");
    Ok(())
}

fn image(rendering: &str, objects: &[Value]) -> Result<()> {
    let expected = image_of(rendering);
    for container in containers(objects)? {
        let image = container.image.context("no image")?;
        ensure!(image == expected, "{image}, not {expected}");
    }
    Ok(())
}
