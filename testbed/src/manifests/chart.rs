//! The Helm chart renders the same objects as the kustomizations: for the defaults, for each component, and for all of them.
//! Values that contradict one another fail, and the error names them.

mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{name_of, parse};
use crate::suite::cases::Cases;

/// The namespace of `deploy/`.
const NAMESPACE: &str = "probe-handler-system";

/// What `helm template` assumes of the cluster: the newest version, which has all types.
const KUBERNETES: &str = "1.36.0";

/// Labels that each object of a chart has in addition.
const CHART_LABELS: [&str; 2] = ["helm.sh/chart", "app.kubernetes.io/managed-by"];

/// Renderings by kustomize, and the values by which the chart renders the same.
const SAME: &[(&[&str], &[&str])] = &[
    (&["base"], &[]),
    (&["handler-path"], &["agent.kernelPath=false"]),
    (&["k3s"], &["platform=k3s"]),
    (&["kind"], &["platform=kind"]),
    (&["least-privilege"], &["agent.leastPrivilege=true"]),
    (&["monitoring"], &["monitoring.enabled=true"]),
    (&["plugin"], &["plugin.enabled=true"]),
    (&["events"], &["agent.events=true"]),
    (&["node-condition"], &["agent.nodeCondition=true"]),
    (&["startup-taint"], &["agent.startupTaint=true"]),
    (&["base", "webhook"], &["webhook.enabled=true"]),
    (
        &["base", "webhook-cert-manager"],
        &["webhook.enabled=true", "webhook.certManager=true"],
    ),
    (
        &["base", "webhook-host-network"],
        &["webhook.enabled=true", "webhook.hostNetwork=true"],
    ),
    (
        &["base", "admission-policy"],
        &["admissionPolicy.enabled=true"],
    ),
    (
        &["cleanup"],
        &["agent.enabled=false", "cleanup.enabled=true"],
    ),
    (
        &["cleanup+least-privilege"],
        &[
            "agent.enabled=false",
            "cleanup.enabled=true",
            "agent.leastPrivilege=true",
        ],
    ),
    (
        &["base+handler-path+k3s"],
        &["agent.kernelPath=false", "platform=k3s"],
    ),
    (
        &["base+least-privilege+monitoring"],
        &["agent.leastPrivilege=true", "monitoring.enabled=true"],
    ),
];

/// Values that contradict one another or are not valid, and a part of the error.
const REFUSED: &[(&str, &[&str], &str)] = &[
    (
        "cleanup-beside-the-daemon",
        &["cleanup.enabled=true"],
        "agent.enabled: false",
    ),
    (
        "webhook-and-policy",
        &["webhook.enabled=true", "admissionPolicy.enabled=true"],
        "exclude each other",
    ),
    (
        "cert-manager-without-webhook",
        &["webhook.certManager=true"],
        "webhook.enabled",
    ),
    (
        "host-network-without-webhook",
        &["webhook.hostNetwork=true"],
        "webhook.enabled",
    ),
    (
        "webhook-without-daemon",
        &["agent.enabled=false", "webhook.enabled=true"],
        "agent.enabled: true",
    ),
    (
        "policy-without-daemon",
        &["agent.enabled=false", "admissionPolicy.enabled=true"],
        "agent.enabled: true",
    ),
    (
        "a-flag-twice",
        &["agent.extraArgs={--scope=all}"],
        "agent.scope",
    ),
    (
        "a-setting-as-flag-too",
        &["agent.mode=observe", "agent.settings.mode=serve"],
        "agent.settings.mode",
    ),
    (
        "a-setting-in-extra-args-too",
        &[
            "agent.extraArgs={--http=kernel}",
            "agent.settings.http=handler",
        ],
        "agent.settings.http",
    ),
    ("an-unknown-setting", &["agent.settings.bpffs=/x"], "bpffs"),
    // The daemon would refuse the whole file.
    (
        "no-time-to-outlive",
        &["agent.settings.outlive=0s"],
        "outlive",
    ),
    (
        "more-than-720-hours",
        &["agent.settings.outlive=721h"],
        "outlive",
    ),
    (
        "more-than-720-hours-in-minutes",
        &["agent.settings.outlive=43201m"],
        "outlive",
    ),
    (
        "more-than-720-hours-in-seconds",
        &["agent.settings.outlive=2592001s"],
        "outlive",
    ),
    (
        "no-level-of-the-log",
        &["agent.settings.log=verbose"],
        "log",
    ),
    // The kubelet would kill it before.
    (
        "a-drain-beyond-the-grace-period",
        &["agent.settings.drain-timeout=30"],
        "drain-timeout",
    ),
    (
        "a-drain-beyond-the-grace-period-by-flag",
        &["agent.extraArgs={--drain-timeout=30}"],
        "--drain-timeout",
    ),
    (
        "no-prefix-of-paths",
        &["webhook.settings.pathPrefix=/a/../b"],
        "pathPrefix",
    ),
    (
        "a-port-of-two-daemons",
        &["agent.extraArgs={--handler-port=15030}"],
        "--handler-port",
    ),
    (
        "metrics-where-nothing-scrapes",
        &[
            "agent.extraArgs={--admin-addr=127.0.0.1:15026}",
            "monitoring.enabled=true",
        ],
        "--admin-addr",
    ),
    (
        "a-taint-of-anybody",
        &["agent.startupTaint=true", "agent.startupTaintKey=starting"],
        "startupTaintKey",
    ),
    (
        "kind-that-pulls",
        &["platform=kind", "image.pullPolicy=Always"],
        "image.pullPolicy",
    ),
    ("unknown-value", &["agent.kernelpath=false"], "kernelpath"),
    ("no-surge", &["agent.maxSurge=0"], "maxSurge"),
    (
        "a-surge-of-zero-percent",
        &["agent.maxSurge=0%"],
        "maxSurge",
    ),
    ("no-image-name", &["image.repository=UPPER"], "repository"),
];

/// Values that an older cluster can't have, with that version.
const TOO_OLD: &[(&str, &str)] = &[
    ("agent.leastPrivilege=true", "1.29.5"),
    ("agent.nodeCondition=true", "1.31.9"),
    ("agent.startupTaint=true", "1.31.9"),
    ("webhook.enabled=true", "1.27.0"),
    ("admissionPolicy.enabled=true", "1.35.1"),
];

/// Compares the renderings of `helm` with `kustomized`, the renderings by kustomize.
pub fn compare(
    cases: &mut Cases,
    helm: &Path,
    chart: &Path,
    kustomized: &BTreeMap<String, Vec<Value>>,
) {
    let group = format!("chart-by-helm-{}", major(helm).unwrap_or("?".into()));
    cases.group_with(&group, |cases| {
        cases.case("lint", || {
            let output = run(helm, &["lint", "--strict"], chart, &[])?;
            ensure!(output.status.success(), "{}", text(&output));
            Ok(())
        });
        for (parts, values) in SAME {
            cases.case(&format!("same/{}", parts.join("+")), || {
                same(&rendered(helm, chart, values)?, parts, kustomized)
            });
        }
        for (name, values, part) in REFUSED {
            cases.case(&format!("refused/{name}"), || {
                refused(&template(helm, chart, KUBERNETES, values)?, part)
            });
        }
        for (value, version) in TOO_OLD {
            cases.case(&format!("too-old/{value}"), || {
                refused(
                    &template(helm, chart, version, &[value])?,
                    "requires Kubernetes",
                )
            });
        }
        values::check(cases, helm, chart);
        cases.case("removed-as-documented", || removal(helm, chart));
        cases.case("another-namespace", || another_namespace(helm, chart));
        Ok(())
    });
}

/// The major version: 4 for v4.3.1.
fn major(helm: &Path) -> Option<String> {
    let output = Command::new(helm)
        .args(["version", "--short"])
        .output()
        .ok()?;
    let version = String::from_utf8_lossy(&output.stdout);
    let digits = version.trim().strip_prefix('v')?.split('.').next()?;
    Some(digits.to_owned())
}

fn run(helm: &Path, words: &[&str], chart: &Path, values: &[&str]) -> Result<Output> {
    let mut command = Command::new(helm);
    command.args(words).arg(chart);
    for value in values {
        command.args(["--set", value]);
    }
    command
        .output()
        .with_context(|| format!("cannot run {}", helm.display()))
}

fn template(helm: &Path, chart: &Path, kubernetes: &str, values: &[&str]) -> Result<Output> {
    let words = [
        "template",
        "probe-handler",
        "--namespace",
        NAMESPACE,
        "--kube-version",
        kubernetes,
    ];
    run(helm, &words, chart, values)
}

fn text(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&all).into_owned()
}

fn rendered(helm: &Path, chart: &Path, values: &[&str]) -> Result<Vec<Value>> {
    let output = template(helm, chart, KUBERNETES, values)?;
    ensure!(output.status.success(), "{}", text(&output));
    let objects = parse(&output.stdout)?;
    Ok(objects
        .into_iter()
        .filter(|object| !object.is_null())
        .map(without_chart_labels)
        .collect())
}

fn without_chart_labels(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut()
        && let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut)
    {
        labels.retain(|label, _| !CHART_LABELS.contains(&label.as_str()));
        if labels.is_empty() {
            let _none = metadata.remove("labels");
        }
    }
    object
}

/// The namespace is not part of the chart, because a release is stored in it.
fn same(
    charted: &[Value],
    parts: &[&str],
    kustomized: &BTreeMap<String, Vec<Value>>,
) -> Result<()> {
    let mut expected = Vec::new();
    for part in parts {
        let objects = kustomized.get(*part);
        expected.extend(objects.with_context(|| format!("{part} is not rendered"))?);
    }
    expected.retain(|object| object["kind"] != "Namespace");
    let names = |objects: &mut dyn Iterator<Item = &Value>| -> BTreeSet<String> {
        objects.map(name_of).collect()
    };
    let (ours, theirs) = (
        names(&mut charted.iter()),
        names(&mut expected.iter().copied()),
    );
    ensure!(ours == theirs, "the chart has {ours:?}, deploy/ {theirs:?}");
    for object in charted {
        let other = expected
            .iter()
            .find(|other| name_of(other) == name_of(object));
        let other = other.context("it was just there")?;
        if let Some(difference) = difference("", object, other) {
            bail!("{}{difference}", name_of(object));
        }
    }
    Ok(())
}

/// The first path at which two values differ, with both values there.
fn difference(path: &str, chart: &Value, kustomize: &Value) -> Option<String> {
    match (chart, kustomize) {
        (Value::Object(one), Value::Object(other)) => {
            let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            keys.into_iter().find_map(|key| {
                let path = format!("{path}.{key}");
                difference(
                    &path,
                    one.get(key).unwrap_or(&Value::Null),
                    other.get(key).unwrap_or(&Value::Null),
                )
            })
        }
        (one, other) if one == other => None,
        (one, other) => Some(format!("{path} is {one} in the chart, {other} in deploy/")),
    }
}

fn refused(output: &Output, part: &str) -> Result<()> {
    let text = text(output);
    ensure!(!output.status.success(), "it is rendered");
    ensure!(
        text.contains(part),
        "the error does not contain {part:?}: {text}"
    );
    Ok(())
}

/// The page with the commands to remove a release.
const INSTALL: &str = include_str!("../../../docs/install.md");

/// The values of each documented `helm upgrade`, on top of all before (`--reuse-values`).
fn removal(helm: &Path, chart: &Path) -> Result<()> {
    let page = INSTALL.replace("\\\n", "");
    let steps: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("helm upgrade ") && line.contains(" --reuse-values "))
        .filter_map(|line| line.split_once("--set ").map(|(_, values)| values))
        .collect();
    ensure!(steps.len() == 3, "install.md has {steps:?}");
    let webhook = ["enabled", "certManager", "hostNetwork"]
        .map(|value| format!("webhook.{value}=true"))
        .join(",");
    for installed in [&webhook, "admissionPolicy.enabled=true"] {
        let mut values = vec![
            installed,
            "agent.startupTaint=true,agent.nodeCondition=true",
        ];
        let mut left = Vec::new();
        for step in &steps {
            values.push(step);
            let objects = rendered(helm, chart, &values).with_context(|| values.join(" "))?;
            left = objects.iter().map(name_of).collect();
            let admission = left.iter().find(|name| name.starts_with("Mutating"));
            ensure!(admission.is_none(), "{admission:?} after {values:?}");
        }
        let has = |name: &str| left.iter().any(|other| other == name);
        ensure!(
            has("DaemonSet/probe-handler-cleanup") && !has("DaemonSet/probe-handler"),
            "{left:?}"
        );
    }
    Ok(())
}

/// Nothing refers to the usual namespace.
fn another_namespace(helm: &Path, chart: &Path) -> Result<()> {
    let words = [
        "template",
        "other",
        "--namespace",
        "mesh-probes",
        "--kube-version",
        KUBERNETES,
    ];
    for values in [
        [
            "webhook.enabled=true",
            "webhook.certManager=true",
            "monitoring.enabled=true",
        ],
        [
            "admissionPolicy.enabled=true",
            "monitoring.enabled=true",
            "agent.nodeCondition=true",
        ],
    ] {
        let output = run(helm, &words, chart, &values)?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{text}");
        ensure!(text.contains("namespace: mesh-probes"), "no such namespace");
        if let Some(line) = text.lines().find(|line| line.contains(NAMESPACE)) {
            bail!("{line}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_is_named_by_its_path() {
        let one = json!({"spec": {"a": 1, "b": [1, 2]}});
        let other = json!({"spec": {"a": 1, "b": [1, 3]}});
        let found = difference("", &one, &other).expect("different");
        assert_eq!(found, ".spec.b is [1,2] in the chart, [1,3] in deploy/");
        assert_eq!(difference("", &one, &one), None);
        assert!(difference("", &json!({"a": 1}), &json!({})).is_some());
    }

    #[test]
    fn only_the_charts_own_labels_are_ignored() {
        let object = json!({"metadata": {"labels": {"helm.sh/chart": "a", "b": "c"}}});
        let expected = json!({"metadata": {"labels": {"b": "c"}}});
        assert_eq!(without_chart_labels(object), expected);
        let object = json!({"metadata": {"labels": {"helm.sh/chart": "a"}}});
        assert_eq!(without_chart_labels(object), json!({"metadata": {}}));
    }
}
