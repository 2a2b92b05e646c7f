//! `kubectl probes changes`: which probes of observed pods would have another result.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::cli::{FilterArgs, Format, TextFormat};
use crate::cluster::Cluster;
use crate::nodes::{self, Node};
use status_view::changes::changes_of_nodes;
use status_view::filter::Selected;
use status_view::observed::ObservedStatus;
use status_view::output::{self, EXIT_FAILURE};

/// Flags of `changes`.
#[derive(Clone, Debug, Args)]
pub struct ChangesArgs {
    #[command(flatten)]
    filter: FilterArgs,

    /// Output format
    #[arg(short, long, value_enum, default_value_t = TextFormat::Text)]
    output: TextFormat,
}

/// The observed pods of a node in JSON and YAML.
#[derive(Serialize)]
struct Observed<'a> {
    observed: &'a [ObservedStatus],
}

/// Shows the changes of all nodes.
pub fn run(runtime: &Runtime, cluster: &Cluster, args: &ChangesArgs) -> Result<ExitCode, ExitCode> {
    let filter = args.filter.filter(false)?.changes(true);
    let (nodes, selected) = nodes::selected(runtime, cluster, &filter)?;
    let text = match args.output {
        TextFormat::Text => Ok(text(&nodes, &selected)),
        TextFormat::Json => document(&nodes, Format::Json),
        TextFormat::Yaml => document(&nodes, Format::Yaml),
    };
    let text = text.map_err(|why| output::fail(&why))?;
    let printed = output::print(|out| out.write_all(text.as_bytes()));
    let failed = !nodes::any_answered(&nodes) || matches!(selected, Selected::NoSuchPod(_));
    Ok(if failed { EXIT_FAILURE.into() } else { printed })
}

fn document(nodes: &[Node], format: Format) -> Result<String, String> {
    let observed = |status| Observed {
        observed: observed(status),
    };
    nodes::document(nodes, observed, format)
}

fn observed(status: &status_view::status::Status) -> &[ObservedStatus] {
    &status.observed
}

fn text(nodes: &[Node], selected: &Selected) -> String {
    let width = output::width();
    let mut text = String::new();
    if *selected == Selected::Some {
        let pods = nodes.iter().flat_map(|node| {
            let observed = node.state.as_ref().map(|status| &status.observed);
            let observed = observed.into_iter().flatten();
            observed.map(|pod| (Some(node.daemon.node.as_str()), pod))
        });
        let mut pods: Vec<_> = pods.collect();
        pods.sort_by_key(|(node, pod)| (&pod.namespace, &pod.name, *node));
        text.push_str(&changes_of_nodes(&pods, width));
    }
    let failures = nodes::problem_table(&nodes::problems(nodes, false), width);
    if !text.is_empty() && !failures.is_empty() {
        text.push('\n');
    }
    text + &failures
}
