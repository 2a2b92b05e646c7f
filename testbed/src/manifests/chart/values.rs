//! What single values of the chart render.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{KUBERNETES, refused, rendered, template};
use crate::suite::cases::Cases;

type Case = fn(&Path, &Path) -> Result<()>;

/// All cases.
pub fn check(cases: &mut Cases, helm: &Path, chart: &Path) {
    let all: [(&str, Case); 6] = [
        ("settings-are-valid", settings),
        ("prometheus-finds-what-it-selects-by-label", labels),
        ("only-on-selected-nodes", nodes),
        ("another-startup-taint", taint),
        ("a-digest-takes-precedence", digest),
        ("without-its-links-it-says-so", files),
    ];
    for (name, case) in all {
        cases.case(name, || case(helm, chart));
    }
}

/// The daemon reads what the chart writes.
fn settings(helm: &Path, chart: &Path) -> Result<()> {
    for (outlive, drain, log) in [
        ("1s", "0", "info"),
        ("720h", "29", "off"),
        ("43200m", "5", "info\\,serve=debug"),
        ("2592000s", "5", "serve=debug\\,warn"),
    ] {
        let values = [
            "agent.settings.mode=observe",
            "agent.settings.scope=labeled",
            "agent.settings.http=kernel",
            &format!("agent.settings.outlive={outlive}"),
            &format!("agent.settings.drain-timeout={drain}"),
            &format!("agent.settings.log={log}"),
            "agent.settings.kernel-log=true",
        ];
        let objects = rendered(helm, chart, &values)?;
        let found = crate::manifests::rules::settings_file(&objects)?.context("no settings")?;
        ensure!(found.len() == values.len(), "{found:?}");
    }
    Ok(())
}

fn labels(helm: &Path, chart: &Path) -> Result<()> {
    let values = ["monitoring.enabled=true", "monitoring.labels.release=kps"];
    let objects = rendered(helm, chart, &values)?;
    let selected = objects
        .iter()
        .filter(|object| object["apiVersion"] == "monitoring.coreos.com/v1");
    let labels: Vec<&Value> = selected
        .map(|object| &object["metadata"]["labels"]["release"])
        .collect();
    ensure!(labels == [&Value::from("kps"); 3], "{labels:?}");
    Ok(())
}

/// The daemon and cleanup, and never on other nodes than Linux.
fn nodes(helm: &Path, chart: &Path) -> Result<()> {
    let selector = "agent.nodeSelector.pool=a,agent.nodeSelector.kubernetes\\.io/os=windows";
    for other in [None, Some("agent.enabled=false,cleanup.enabled=true")] {
        let values: Vec<&str> = other.into_iter().chain([selector]).collect();
        let objects = rendered(helm, chart, &values)?;
        let daemon_set = objects.iter().find(|object| object["kind"] == "DaemonSet");
        let found = &daemon_set.context("no DaemonSet")?["spec"]["template"]["spec"];
        let expected = serde_json::json!({"kubernetes.io/os": "linux", "pool": "a"});
        let found = &found["nodeSelector"];
        ensure!(*found == expected, "{found}");
    }
    Ok(())
}

/// The flag and the policy have the same key, and nothing has the usual one.
fn taint(helm: &Path, chart: &Path) -> Result<()> {
    const KEY: &str = "startup-taint.cluster-autoscaler.kubernetes.io/probe-handler";
    let key = format!("agent.startupTaintKey={KEY}");
    let objects = rendered(helm, chart, &["agent.startupTaint=true", &key])?;
    let text = serde_json::to_string(&objects)?;
    ensure!(
        text.contains(&format!("--startup-taint={KEY}"))
            && text.contains(&format!("t.key == '{KEY}'"))
            && !text.contains("probe-handler.io/starting"),
        "{text}"
    );
    Ok(())
}

fn digest(helm: &Path, chart: &Path) -> Result<()> {
    let digest = format!("sha256:{}", "0a".repeat(32));
    let set = format!("image.digest={digest}");
    let objects = rendered(
        helm,
        chart,
        &["image.repository=r.example/p", "image.tag=v1", &set],
    )?;
    let daemon_set = objects.iter().find(|object| object["kind"] == "DaemonSet");
    let image =
        &daemon_set.context("no DaemonSet")?["spec"]["template"]["spec"]["containers"][0]["image"];
    ensure!(*image == format!("r.example/p@{digest}"), "{image}");
    Ok(())
}

/// A copy without links renders what needs none of them, and otherwise fails.
fn files(helm: &Path, chart: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let copy = scratch.path();
    fs::create_dir(copy.join("templates"))?;
    for directory in ["", "templates"] {
        for entry in fs::read_dir(chart.join(directory))? {
            let from = entry?.path();
            if from.is_file() {
                let name = from.file_name().context("no name")?;
                let _bytes = fs::copy(&from, copy.join(directory).join(name))?;
            }
        }
    }
    let _plain = rendered(helm, copy, &[])?;
    // Where links are not supported, Git writes their targets into files.
    let target = "../../webhook/webhookconfiguration.yaml";
    fs::create_dir(copy.join("files"))?;
    fs::write(copy.join("files/webhookconfiguration.yaml"), target)?;
    for value in [
        "webhook.enabled",
        "admissionPolicy.enabled",
        "monitoring.enabled",
        "agent.nodeCondition",
        "agent.startupTaint",
    ] {
        let output = template(helm, copy, KUBERNETES, &[&format!("{value}=true")])?;
        refused(&output, "packaged chart").context(value)?;
    }
    Ok(())
}
