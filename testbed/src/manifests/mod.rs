//! `testbed manifests`: renders every overlay of `deploy/` and combinations of components as
//! `kubectl apply -k` does, and checks them against Kubernetes' schema and the rules of probe-handler's
//! design. The Helm chart must render the same.

mod alerts;
mod cert_manager;
mod chart;
mod cleanup;
mod combined;
mod monitoring;
mod plugin;
mod references;
mod rules;
mod schema;
mod webhook;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::suite::cases::Cases;
use rules::Rule;

/// Options of `testbed manifests`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The kubectl to render with
    #[arg(long, value_name = "PATH", default_value = "kubectl")]
    kubectl: PathBuf,
    /// A Helm to render the chart with; can be repeated. Without one, the cases of the chart count as skipped
    #[arg(long, value_name = "PATH")]
    helm: Vec<PathBuf>,
    /// The promtool to check alerts with. Without one, its cases count as skipped
    #[arg(long, value_name = "PATH")]
    promtool: Option<PathBuf>,
    /// The directory of the manifests
    #[arg(long, value_name = "PATH", default_value = "deploy")]
    deploy: PathBuf,
    /// Only cases whose name (`overlay/case`) contains one of these
    filter: Vec<String>,
}

/// Checks all overlays, and components in combinations.
///
/// # Errors
/// When a case failed.
pub fn main(args: &Args) -> Result<()> {
    let started = Instant::now();
    let mut cases = Cases::new(args.filter.clone(), None);
    let scratch = tempfile::tempdir().context("a directory for combinations")?;
    let mut renderings = overlays(&args.deploy)?;
    renderings.extend(combined::write(&args.deploy, scratch.path())?);
    let chart = args.deploy.join("chart");
    let mut kustomized = BTreeMap::new();
    for (name, directory) in renderings {
        cases.group_with(&name, |cases| {
            let objects = render(&args.kubectl, &directory)?;
            check(cases, &name, &objects);
            if has(&name, "monitoring") {
                by_promtool(cases, args.promtool.as_deref(), &objects);
            }
            let _new = kustomized.insert(name.clone(), objects);
            Ok(())
        });
    }
    if args.helm.is_empty() {
        cases.group_with("chart-by-helm", |cases| {
            cases.skip("every-case", "no Helm was given (--helm)");
            Ok(())
        });
    }
    for helm in &args.helm {
        chart::compare(&mut cases, helm, &chart, &kustomized);
    }
    cases.summary(started.elapsed());
    if cases.failed() > 0 {
        bail!("{} cases failed", cases.failed());
    }
    if cases.passed() == 0 {
        bail!("no case ran: {:?} selects none", args.filter);
    }
    Ok(())
}

fn check(cases: &mut Cases, rendering: &str, objects: &[Value]) {
    for object in objects {
        cases.case(&format!("schema/{}", name_of(object)), || {
            schema::check(object)
        });
    }
    hold(cases, references::RULES, rendering, objects);
    // If both are rendered, each is checked against its own rules.
    let (of_webhook, others): (Vec<Value>, Vec<Value>) =
        objects.iter().cloned().partition(|object| {
            object["metadata"]["labels"]["app.kubernetes.io/name"] == "probe-handler-webhook"
        });
    let webhook = rendering.split('+').any(|part| part.starts_with("webhook"));
    if webhook {
        hold(cases, webhook::RULES, rendering, &of_webhook);
        hold(cases, references::WEBHOOK_RULES, rendering, objects);
    }
    if has(rendering, "cleanup") {
        hold(cases, cleanup::RULES, rendering, objects);
        return;
    }
    if rendering != "admission-policy" && (!webhook || has(rendering, "base")) {
        hold(cases, rules::RULES, rendering, &others);
    }
    if has(rendering, "monitoring") {
        hold(cases, monitoring::RULES, rendering, objects);
    }
    if has(rendering, "plugin") {
        hold(cases, plugin::RULES, rendering, objects);
    }
}

fn by_promtool(cases: &mut Cases, promtool: Option<&Path>, objects: &[Value]) {
    const NAME: &str = "each-alert-fires-when-it-should";
    match promtool {
        Some(promtool) => cases.case(NAME, || alerts::check(promtool, objects)),
        None => cases.skip(NAME, "no promtool was given (--promtool)"),
    }
}

fn hold(cases: &mut Cases, rules: &[(&str, Rule)], rendering: &str, objects: &[Value]) {
    for (name, rule) in rules {
        cases.case(name, || rule(rendering, objects));
    }
}

/// Whether a rendering contains a part: `k3s` is in overlay `k3s` and in `base+k3s+monitoring`.
fn has(rendering: &str, part: &str) -> bool {
    rendering.split('+').any(|name| name == part)
}

/// The directory itself as `base`, the directories that are applied separately, and each overlay.
fn overlays(deploy: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = vec![("base".to_owned(), deploy.to_owned())];
    for beside in ["webhook", "admission-policy", "cleanup"] {
        found.push((beside.to_owned(), deploy.join(beside)));
    }
    let directory = deploy.join("overlays");
    for name in entries(&directory)? {
        let path = directory.join(&name);
        found.push((name, path));
    }
    found.sort();
    Ok(found)
}

/// The names in a directory, in order.
fn entries(directory: &Path) -> Result<Vec<String>> {
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn render(kubectl: &Path, directory: &Path) -> Result<Vec<Value>> {
    let output = Command::new(kubectl)
        .arg("kustomize")
        .arg(directory)
        .output()
        .with_context(|| format!("running {}", kubectl.display()))?;
    ensure!(
        output.status.success(),
        "kubectl kustomize {} failed: {}",
        directory.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let objects = parse(&output.stdout)?;
    ensure!(!objects.is_empty(), "nothing is rendered");
    Ok(objects)
}

/// All documents of a manifest.
///
/// # Errors
/// The text is not YAML.
pub fn parse(text: &[u8]) -> Result<Vec<Value>> {
    serde_yaml_ng::Deserializer::from_slice(text)
        .map(|document| Value::deserialize(document).context("a manifest that is no YAML"))
        .collect()
}

/// Kind and name, as in `DaemonSet/probe-handler`.
fn name_of(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!(
        "{}/{}",
        text(&object["kind"]),
        text(&object["metadata"]["name"])
    )
}
