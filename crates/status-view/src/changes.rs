//! `status --changes`: the probes of observed pods whose result would change if they were served.

use crate::observed::{ComparedProbe, ObservedStatus};
use crate::output::wrapped;

/// The text to show if no pod is observed.
pub const NOTHING_OBSERVED: &str = "no pod is observed: run the daemon with --mode observe, or set label \
                                           probe-handler.io/mode=observe on a namespace or pod";
/// Width of the indentation below a pod's name.
const INDENT: usize = 2;

/// A paragraph for each probe that would change and for each pod that can't be compared, and a summary. `width`: `None`
/// if it is unlimited.
pub fn changes(pods: &[ObservedStatus], width: Option<usize>) -> String {
    let pods: Vec<_> = pods.iter().map(|pod| (None, pod)).collect();
    changes_of_nodes(&pods, width)
}

/// Like [`changes`], with the node of each pod.
pub fn changes_of_nodes(pods: &[(Option<&str>, &ObservedStatus)], width: Option<usize>) -> String {
    let mut text = String::new();
    for (node, pod) in pods {
        let changed = pod.probes.iter().filter(|probe| is_change(probe));
        let lines: Vec<_> = match &pod.trouble {
            Some(why) => vec![format!("not compared: {why}")],
            None => changed.map(line).collect(),
        };
        if lines.is_empty() {
            continue;
        }
        let on = node.map_or_else(String::new, |node| format!(" on {node}"));
        let name = format!("{}/{}{on}", pod.namespace, pod.name);
        text.push_str(&wrapped(&name, width, 0));
        for line in lines {
            text.push_str("  ");
            let width = width.map(|width| width.saturating_sub(INDENT));
            text.push_str(&wrapped(&line, width, 2 * INDENT));
        }
    }
    text.push_str(&wrapped(&summary(pods), width, 0));
    text
}

/// Whether the probe would have another result.
pub fn is_change(probe: &ComparedProbe) -> bool {
    matches!(probe.change.as_deref(), Some("cured" | "exposed"))
}

fn line(probe: &ComparedProbe) -> String {
    let change = match probe.change.as_deref() {
        Some("exposed") => "exposed: passes now and would fail",
        _ => "cured: fails now and would pass",
    };
    format!(
        "{} {} {} {change}; {} ({} of {} comparisons)",
        probe.container,
        probe.probe,
        probe.check,
        probe.consequence.as_deref().unwrap_or("no consequence"),
        probe.cured + probe.exposed,
        probe.compared,
    )
}

fn summary(pods: &[(Option<&str>, &ObservedStatus)]) -> String {
    let probes = || pods.iter().flat_map(|(_, pod)| &pod.probes);
    let with = |change| {
        let is = |probe: &&ComparedProbe| probe.change.as_deref() == Some(change);
        probes().filter(is).count()
    };
    let waiting = probes().filter(|probe| probe.compared == 0).count();
    let mut text = format!(
        "{} probes of {} pods observed: {} exposed, {} cured",
        probes().count(),
        pods.len(),
        with("exposed"),
        with("cured"),
    );
    if waiting > 0 {
        text.push_str(&format!(", {waiting} not compared yet"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(kind: &str, change: Option<&str>, consequence: Option<&str>) -> ComparedProbe {
        ComparedProbe {
            container: "web".to_owned(),
            probe: kind.to_owned(),
            mode: "transparent".to_owned(),
            check: "tcp:5432".to_owned(),
            change: change.map(str::to_owned),
            consequence: consequence.map(str::to_owned),
            now: None,
            then: None,
            age_ms: None,
            compared: u64::from(change.is_some()),
            cured: u64::from(change == Some("cured")),
            exposed: u64::from(change == Some("exposed")),
        }
    }

    fn pod(name: &str, trouble: Option<&str>, probes: Vec<ComparedProbe>) -> ObservedStatus {
        ObservedStatus {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            trouble: trouble.map(str::to_owned),
            probes,
        }
    }

    #[test]
    fn only_probes_that_would_change_and_pods_that_are_not_compared_are_listed() {
        let pods = [
            pod("same", None, vec![probe("readiness", Some("none"), None)]),
            pod(
                "web-0",
                None,
                vec![
                    probe(
                        "liveness",
                        Some("exposed"),
                        Some("would be restarted after 30 s (refused)"),
                    ),
                    probe("startup", None, None),
                ],
            ),
            pod("lost", Some("no network namespace yet"), Vec::new()),
        ];
        assert_eq!(
            changes(&pods, Some(80)),
            "\
shop/web-0
  web liveness tcp:5432 exposed: passes now and would fail; would be restarted
    after 30 s (refused) (1 of 1 comparisons)
shop/lost
  not compared: no network namespace yet
3 probes of 3 pods observed: 1 exposed, 0 cured, 1 not compared yet
"
        );
    }
}
