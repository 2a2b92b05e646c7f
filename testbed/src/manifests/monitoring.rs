//! Checks that the monitoring component matches the pods that it scrapes and their metrics.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::rules::Rule;

/// All rules.
pub const RULES: &[(&str, Rule)] = &[
    ("what-is-rendered-is-scraped", scraped),
    ("the-alert-on-a-missing-daemon-names-its-job", job),
    ("alerts-say-how-bad-it-is-and-what-to-do", alerts),
    ("alerts-ask-for-metrics-that-are-documented", alerts_metrics),
    ("what-is-worth-an-alert-has-one", worth_an_alert),
    ("the-dashboard-is-one-that-is-found", found),
    ("each-panel-asks-for-metrics-that-are-documented", panels),
];

/// Tables of metrics: a row has names, kind, labels and meaning.
const DOCUMENTATION: [&str; 2] = [
    include_str!("../../../docs/metrics.md"),
    include_str!("../../../docs/webhook.md"),
];

/// The prefix of all metrics.
const PREFIX: &str = "probe_handler_";

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

/// The elements of a list; `None` if it is not a list.
fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Every workload has a PodMonitor that selects its pods and names a port that they have.
fn scraped(_: &str, objects: &[Value]) -> Result<()> {
    let workloads = of_kind(objects, "DaemonSet").chain(of_kind(objects, "Deployment"));
    for workload in workloads {
        let name = &workload["metadata"]["name"];
        let template = &workload["spec"]["template"];
        let monitor = of_kind(objects, "PodMonitor")
            .find(|monitor| selects(monitor, template))
            .with_context(|| format!("no PodMonitor selects the pods of {name}"))?;
        ensure!(
            monitor["metadata"]["namespace"] == workload["metadata"]["namespace"],
            "the PodMonitor of {name} looks in another namespace"
        );
        for endpoint in list(&monitor["spec"]["podMetricsEndpoints"]) {
            // Without a port, relabelling sets the address.
            let Some(port) = endpoint["port"].as_str() else {
                continue;
            };
            ensure!(
                list(&template["spec"]["containers"])
                    .iter()
                    .flat_map(|container| list(&container["ports"]))
                    .any(|declared| declared["name"] == port),
                "the pods of {name} have no port {port}"
            );
        }
    }
    Ok(())
}

fn selects(monitor: &Value, template: &Value) -> bool {
    let labels = &template["metadata"]["labels"];
    let wanted = monitor["spec"]["selector"]["matchLabels"].as_object();
    wanted.is_some_and(|wanted| {
        !wanted.is_empty() && wanted.iter().all(|(name, value)| labels[name] == *value)
    })
}

/// Each `job` in an alert is that of a PodMonitor. By default it contains the PodMonitor's namespace and name, which a
/// kustomization may change, so it comes from a label of the pods.
fn job(_: &str, objects: &[Value]) -> Result<()> {
    let mut jobs = Vec::new();
    for monitor in of_kind(objects, "PodMonitor") {
        let label = monitor["spec"]["jobLabel"]
            .as_str()
            .context("no jobLabel")?;
        let value = monitor["spec"]["selector"]["matchLabels"][label].as_str();
        jobs.push(value.with_context(|| format!("the pods' label {label} may differ"))?);
    }
    for rule in rules_of(objects) {
        let expression = rule["expr"].as_str().context("an alert without expr")?;
        for named in expression.split("job=\"").skip(1) {
            let named = named.split('"').next().unwrap_or(named);
            ensure!(jobs.contains(&named), "job {named}, not one of {jobs:?}");
        }
        // Names of objects, which a kustomization may change, except as a part.
        let daemon_set = objects.iter().find(|object| object["kind"] == "DaemonSet");
        let renamed = daemon_set.is_some_and(|object| {
            object["metadata"]["name"] != "probe-handler"
                && expression.contains("daemonset=\"probe-handler\"")
        });
        ensure!(!renamed, "no DaemonSet has the name in {expression}");
    }
    Ok(())
}

/// The page with a section for each alert.
const RUNBOOK: &str = include_str!("../../../docs/alerts.md");
/// Its address, before the name of the section.
const RUNBOOKS: &str = "https://github.com/probe-handler/probe-handler/blob/main/docs/alerts.md#";

/// All groups of rules of a rendering.
pub fn groups(objects: &[Value]) -> Vec<Value> {
    of_kind(objects, "PrometheusRule")
        .flat_map(|object| list(&object["spec"]["groups"]))
        .cloned()
        .collect()
}

/// All rules of a rendering: alerts, and those that record another series.
fn rules_of(objects: &[Value]) -> Vec<&Value> {
    of_kind(objects, "PrometheusRule")
        .flat_map(|object| list(&object["spec"]["groups"]))
        .flat_map(|group| list(&group["rules"]))
        .collect()
}

/// All alerts of a rendering.
pub fn alert_rules(objects: &[Value]) -> impl Iterator<Item = &Value> {
    let rules = rules_of(objects).into_iter();
    rules.filter(|rule| rule["record"].is_null())
}

fn alerts(_: &str, objects: &[Value]) -> Result<()> {
    ensure!(alert_rules(objects).count() > 0, "no alerts");
    let mut seen = BTreeSet::new();
    for rule in alert_rules(objects) {
        let name = rule["alert"].as_str().context("an alert without a name")?;
        ensure!(seen.insert(name), "two alerts {name}");
        let filled = |text: &Value| text.as_str().is_some_and(|text| !text.is_empty());
        ensure!(filled(&rule["for"]), "{name}: for");
        let severity = rule["labels"]["severity"].as_str();
        ensure!(
            severity.is_some_and(|severity| ["critical", "warning", "info"].contains(&severity)),
            "{name}: severity {severity:?}"
        );
        for annotation in ["summary", "description"] {
            ensure!(
                filled(&rule["annotations"][annotation]),
                "{name}: no {annotation}"
            );
        }
        let page = rule["annotations"]["runbook_url"].as_str();
        let anchor = page.and_then(|page| page.strip_prefix(RUNBOOKS));
        let heading = RUNBOOK.lines().filter_map(|line| line.strip_prefix("## "));
        let is_there = heading
            .map(str::to_lowercase)
            .any(|one| Some(one.as_str()) == anchor);
        ensure!(
            is_there && anchor == Some(&name.to_lowercase()),
            "{name}: runbook_url {page:?} has no section in docs/alerts.md"
        );
    }
    Ok(())
}

fn alerts_metrics(_: &str, objects: &[Value]) -> Result<()> {
    for rule in rules_of(objects) {
        let expression = rule["expr"].as_str().context("a rule without expr")?;
        known(expression)?;
        known(&rule["annotations"].to_string())?;
    }
    Ok(())
}

/// The only ConfigMap with the label that Grafana's sidecar looks for, and its only key read.
/// Each item under "Worth an alert" names a metric, with labels if it has any, that an alert must use.
fn worth_an_alert(_: &str, objects: &[Value]) -> Result<()> {
    let rules = rules_of(objects);
    if rules.is_empty() {
        return Ok(());
    }
    let expressions: Vec<&str> = rules
        .iter()
        .filter_map(|rule| rule["expr"].as_str())
        .collect();
    let (_, worth) = DOCUMENTATION[0]
        .split_once("## Worth an alert")
        .context("docs/metrics.md names none")?;
    let section = worth.split("\n## ").next().unwrap_or(worth);
    for point in section.lines().filter(|line| line.starts_with("- ")) {
        let series = series(point).with_context(|| format!("no metric in {point:?}"))?;
        ensure!(
            expressions
                .iter()
                .any(|expression| expression.contains(series)),
            "no alert asks for {series}"
        );
    }
    Ok(())
}

fn dashboard(objects: &[Value]) -> Result<Value> {
    let found: Vec<&Value> = of_kind(objects, "ConfigMap")
        .filter(|object| object["metadata"]["labels"]["grafana_dashboard"] == "1")
        .collect();
    let [object] = found[..] else {
        bail!("{} dashboards", found.len());
    };
    let data = object["data"].as_object().context("no data")?;
    let [(key, text)] = &data.iter().collect::<Vec<_>>()[..] else {
        bail!("{} keys", data.len());
    };
    ensure!(
        key.ends_with(".json"),
        "the sidecar takes {key} for no dashboard"
    );
    let text = text.as_str().context("no text")?;
    serde_json::from_str(text).context("the dashboard is not JSON")
}

fn found(_: &str, objects: &[Value]) -> Result<()> {
    let dashboard = dashboard(objects)?;
    for field in ["title", "uid"] {
        ensure!(dashboard[field].is_string(), "no {field}");
    }
    Ok(())
}

fn panels(_: &str, objects: &[Value]) -> Result<()> {
    let dashboard = dashboard(objects)?;
    let panels = list(&dashboard["panels"]);
    let shown = panels.iter().filter(|panel| panel["type"] != "row");
    let mut targets = 0;
    for panel in shown {
        let title = &panel["title"];
        let own = list(&panel["targets"]);
        ensure!(!own.is_empty(), "panel {title} asks for nothing");
        for target in own {
            let expression = target["expr"].as_str().context("a target without expr")?;
            let asked = names(expression).count();
            ensure!(asked > 0, "panel {title} asks for no metric of ours");
            targets += asked;
        }
    }
    ensure!(targets > 0, "no panels");
    // Variables contain queries too.
    known(&dashboard.to_string())
}

/// Checks that all metrics in a text are documented.
fn known(text: &str) -> Result<()> {
    for name in names(text) {
        ensure!(is_documented(name), "{name} is not documented");
    }
    Ok(())
}

/// The names of metrics in a text.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices(PREFIX).map(|(at, _)| {
        let rest = &text[at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

/// The first metric in a text, with its labels.
fn series(text: &str) -> Option<&str> {
    let name = names(text).next()?;
    let (_, from) = text.split_at(text.find(name)?);
    let labels = from.get(name.len()..)?;
    match labels.strip_prefix('{').and_then(|inner| inner.find('}')) {
        Some(end) => from.get(..name.len() + end + 2),
        None => Some(name),
    }
}

fn is_documented(name: &str) -> bool {
    let lines = DOCUMENTATION.into_iter().flat_map(str::lines);
    let mut rows = lines.filter(|line| line.starts_with("| `probe_handler_"));
    rows.any(|row| {
        let mut cells = row.split('|').skip(1);
        let (documented, kind) = (cells.next().unwrap_or(""), cells.next().unwrap_or(""));
        names(documented).any(|documented| match name.strip_prefix(documented) {
            Some("") => true,
            Some("_bucket" | "_sum" | "_count") => kind.trim() == "histogram",
            _ => false,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_where_labels_or_operators_begin() {
        let text = r#"rate(probe_handler_a_total{b="c"}[5m]) > probe_handler_d/probe_handler_e"#;
        let found: Vec<&str> = names(text).collect();
        assert_eq!(
            found,
            [
                "probe_handler_a_total",
                "probe_handler_d",
                "probe_handler_e"
            ]
        );
    }

    #[test]
    fn a_series_has_the_labels_after_its_name() {
        let text = r#"- `probe_handler_a_total{b="c"}` rises, `probe_handler_d{e="f"} > 0`"#;
        assert_eq!(series(text), Some(r#"probe_handler_a_total{b="c"}"#));
        assert_eq!(series("`probe_handler_d == 0`"), Some("probe_handler_d"));
        assert_eq!(series("none"), None);
    }

    #[test]
    fn what_is_not_documented_is_found() {
        for name in [
            "probe_handler_pods",
            "probe_handler_probes_total",
            "probe_handler_probe_duration_seconds_bucket",
            "probe_handler_webhook_review_duration_seconds_count",
            "probe_handler_build_info",
        ] {
            known(name).expect(name);
        }
        for name in [
            "probe_handler_pod",
            "probe_handler_pods_total",
            "probe_handler_pods_bucket",
            "probe_handler_probes",
            "probe_handler_probe_duration_seconds_buckets",
        ] {
            assert!(known(name).is_err(), "{name}");
        }
    }
}
