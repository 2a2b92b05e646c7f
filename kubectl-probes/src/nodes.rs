//! The states of all nodes, and the nodes without one.

use std::process::ExitCode;

use serde::Serialize;
use tokio::runtime::Runtime;

use crate::cli::{Format, unusable};
use crate::cluster::Cluster;
use crate::daemons::{self, Daemon};
use crate::forward::Failure;
use crate::gather::{gather, json};
use status_view::filter::{Filter, Found, Place, Selected};
use status_view::output::{self, wrapped};
use status_view::shown::Shown;
use status_view::status::Status;

/// A node: the state of its daemon, or why there is none.
#[derive(Debug)]
pub struct Node {
    /// The daemon.
    pub daemon: Daemon,
    /// Its state.
    pub state: Result<Status, Failure>,
}

/// A node in JSON and YAML.
#[derive(Debug, Serialize)]
pub struct NodeOutput<'a, T> {
    node: &'a str,
    pod: &'a str,
    /// Why the state is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    value: Option<T>,
}

/// The list in JSON and YAML.
#[derive(Debug, Serialize)]
pub struct Output<'a, T> {
    nodes: Vec<NodeOutput<'a, T>>,
}

/// The states of all daemons.
///
/// # Errors
/// The daemons can't be listed.
pub fn states(runtime: &Runtime, cluster: &Cluster) -> Result<Vec<Node>, daemons::Error> {
    runtime.block_on(async {
        let daemons = cluster.daemons().await?;
        let answers = gather(cluster, &daemons, "/status", json::<Status>).await;
        let nodes = answers.into_iter();
        Ok(nodes
            .map(|(daemon, state)| Node { daemon, state })
            .collect())
    })
}

/// Removes what `filter` does not select.
pub fn select(nodes: &mut [Node], filter: &Filter) -> Selected {
    let states = nodes.iter_mut().filter_map(|node| node.state.as_mut().ok());
    let found = states.map(|status| filter.retain(status));
    let found = found.fold(Found::default(), Found::or);
    filter.selected(found, Place::Nodes)
}

/// The states, for a table.
pub fn shown(nodes: &[Node]) -> Vec<Shown<'_>> {
    let shown = nodes.iter().filter_map(|node| {
        Some(Shown {
            node: Some(&node.daemon.node),
            status: node.state.as_ref().ok()?,
        })
    });
    shown.collect()
}

/// The states of all nodes, without what `filter` does not select. Notes why nothing is selected, if any node has answered.
///
/// # Errors
/// The exit code, after a note why the daemons can't be listed.
pub fn selected(
    runtime: &Runtime,
    cluster: &Cluster,
    filter: &Filter,
) -> Result<(Vec<Node>, Selected), ExitCode> {
    let mut nodes = states(runtime, cluster).map_err(|error| unusable(&error.to_string()))?;
    let selected = select(&mut nodes, filter);
    if let Selected::Nothing(why) | Selected::NoSuchPod(why) = &selected
        && any_answered(&nodes)
    {
        output::note(why);
    }
    Ok((nodes, selected))
}

/// Whether any node has a state.
pub fn any_answered(nodes: &[Node]) -> bool {
    nodes.iter().any(|node| node.state.is_ok())
}

/// Whether a node has no state.
pub fn any_failed(nodes: &[Node]) -> bool {
    nodes.iter().any(|node| node.state.is_err())
}

/// The nodes without a state, and with `problems` also the problems of the other daemons: node and text.
pub fn problems(nodes: &[Node], problems: bool) -> Vec<(&str, String)> {
    let mut rows = Vec::new();
    for node in nodes {
        let name = node.daemon.node.as_str();
        match &node.state {
            Err(failure) => rows.push((name, failure.to_string())),
            Ok(status) if problems => {
                rows.extend(of_daemon(status).into_iter().map(|problem| (name, problem)));
            }
            Ok(_) => {}
        }
    }
    rows
}

/// The problem of a daemon as a whole.
pub fn of_daemon(status: &Status) -> Vec<String> {
    let mut problems = Vec::new();
    if !status.pending.is_empty() {
        let waiting = status.pending.join(", ");
        problems.push(format!("not ready: waiting for {waiting}"));
    }
    if !status.kubelet.attached {
        problems.push("the programs are not attached to the kubelet".to_owned());
    }
    let missing = status.missing.iter();
    problems.extend(missing.map(|missing| format!("missing: {}: {}", missing.part, missing.why)));
    problems.extend(status.source.problems.iter().cloned());
    problems
}

/// A table of nodes and their problems; empty if there is no problem.
pub fn problem_table(problems: &[(&str, String)], width: Option<usize>) -> String {
    let names = problems.iter().map(|(node, _)| node.chars().count());
    let Some(longest) = names.max() else {
        return String::new();
    };
    let name = longest.max("NODE".len());
    // If the name needs more than half of the width, the problem is on the line below it.
    let is_table = width.is_none_or(|width| name + 2 <= width / 2);
    let mut text = String::new();
    if is_table {
        text.push_str(&wrapped(&format!("{:<name$}  PROBLEM", "NODE"), width, 0));
    }
    for (node, problem) in problems {
        let (line, indent) = match is_table {
            true => (format!("{node:<name$}  {problem}"), name + 2),
            false => (format!("{node}: {problem}"), 2),
        };
        text.push_str(&wrapped(&line, width, indent));
    }
    text
}

/// The nodes whose daemon has another version than `version`, as a note.
pub fn other_versions(nodes: &[Node], version: &str) -> Option<String> {
    let others = nodes.iter().filter_map(|node| {
        let status = node.state.as_ref().ok()?;
        (status.version != version).then(|| format!("{} ({})", node.daemon.node, status.version))
    });
    let others: Vec<_> = others.collect();
    let first: Vec<_> = others.iter().take(3).map(String::as_str).collect();
    let more = match others.len().saturating_sub(3) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let first = first.join(", ");
    (!others.is_empty())
        .then(|| format!("daemons of another version than this plugin ({version}): {first}{more}"))
}

/// JSON or YAML of `value` for each node.
///
/// # Errors
/// It can't be written: a message.
pub fn document<'a, T: Serialize + 'a>(
    nodes: &'a [Node],
    value: impl Fn(&'a Status) -> T,
    format: Format,
) -> Result<String, String> {
    let output = Output {
        nodes: nodes
            .iter()
            .map(|node| NodeOutput {
                node: &node.daemon.node,
                pod: &node.daemon.pod,
                error: node.state.as_ref().err().map(ToString::to_string),
                value: node.state.as_ref().ok().map(&value),
            })
            .collect(),
    };
    let cannot = |error: &dyn std::fmt::Display| format!("cannot write the states: {error}");
    match format {
        Format::Yaml => serde_yaml_ng::to_string(&output)
            .map(|yaml| format!("---\n{yaml}"))
            .map_err(|error| cannot(&error)),
        _ => serde_json::to_string_pretty(&output)
            .map(|json| json + "\n")
            .map_err(|error| cannot(&error)),
    }
}
