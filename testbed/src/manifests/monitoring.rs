//! What the monitoring component has to agree with: the pods that it scrapes.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::rules::Rule;

/// All rules.
pub const RULES: &[(&str, Rule)] = &[("what-is-rendered-is-scraped", scraped)];

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

/// The elements of a list; none where there is no list.
fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Every workload has a PodMonitor that selects its pods, at a port that they have.
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
            // Without one it is relabelling that says where.
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
