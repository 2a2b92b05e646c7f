//! The rules of the design for the manifests that remove what the kernel path leaves on the nodes.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use probe_handler::cli::Command;
use serde_json::Value;

use super::rules::{Rule, image_of, one, parsed};

/// All rules.
pub const RULES: &[(&str, Rule)] = &[
    ("a-pod-is-ready-once-everything-is-removed", order),
    ("sees-the-nodes-processes-and-bpf-file-system", node),
    ("on-every-node", everywhere),
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
