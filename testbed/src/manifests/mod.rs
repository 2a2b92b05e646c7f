//! `testbed manifests`: every overlay of `deploy/` is rendered as `kubectl apply -k` renders it, held
//! against Kubernetes' schema, and against what probe-handler's design asks of it.

mod cert_manager;
mod rules;
mod schema;
mod webhook;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::suite::cases::Cases;

/// Options of `testbed manifests`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The kubectl to render with
    #[arg(long, value_name = "PATH", default_value = "kubectl")]
    kubectl: PathBuf,
    /// The directory of the manifests
    #[arg(long, value_name = "PATH", default_value = "deploy")]
    deploy: PathBuf,
    /// Only cases whose name (`overlay/case`) contains one of these
    filter: Vec<String>,
}

/// Checks all overlays.
///
/// # Errors
/// When a case failed.
pub fn main(args: &Args) -> Result<()> {
    let started = Instant::now();
    let mut cases = Cases::new(args.filter.clone(), None);
    for (name, directory) in overlays(&args.deploy)? {
        cases.group_with(&name, |cases| {
            let objects = render(&args.kubectl, &directory)?;
            check(cases, &name, &objects);
            Ok(())
        });
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

fn check(cases: &mut Cases, overlay: &str, objects: &[Value]) {
    for object in objects {
        cases.case(&format!("schema/{}", name_of(object)), || {
            schema::check(object)
        });
    }
    let rules = match overlay {
        "admission-policy" => &[],
        _ if overlay.starts_with("webhook") => webhook::RULES,
        _ => rules::RULES,
    };
    for (name, rule) in rules {
        cases.case(name, || rule(overlay, objects));
    }
}

/// The directory itself, as `base`, what is applied beside it, and each of its overlays.
fn overlays(deploy: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = vec![("base".to_owned(), deploy.to_owned())];
    for beside in ["webhook", "admission-policy"] {
        found.push((beside.to_owned(), deploy.join(beside)));
    }
    let directory = deploy.join("overlays");
    let entries = std::fs::read_dir(&directory)
        .with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        found.push((
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        ));
    }
    found.sort();
    Ok(found)
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
/// It is no YAML.
pub fn parse(text: &[u8]) -> Result<Vec<Value>> {
    serde_yaml_ng::Deserializer::from_slice(text)
        .map(|document| Value::deserialize(document).context("a manifest that is no YAML"))
        .collect()
}

/// As `DaemonSet/probe-handler`.
fn name_of(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!(
        "{}/{}",
        text(&object["kind"]),
        text(&object["metadata"]["name"])
    )
}
