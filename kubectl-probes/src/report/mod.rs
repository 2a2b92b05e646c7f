//! `kubectl probes report`: one HTML page for the review of a rollout.

mod page;
mod plot;
mod summary;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tokio::runtime::Runtime;

use crate::cli::FilterArgs;
use crate::cluster::Cluster;
use crate::{file, nodes};
use page::Subject;
use status_view::filter::Selected;
use status_view::output::EXIT_FAILURE;
use status_view::time::now;
use summary::Summary;

/// Flags of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    #[command(flatten)]
    filter: FilterArgs,

    /// The file to write, - for standard output
    #[arg(short, long, value_name = "FILE", default_value = "probes-report.html")]
    file: PathBuf,
}

/// Writes the page.
pub fn run(runtime: &Runtime, cluster: &Cluster, args: &ReportArgs) -> Result<ExitCode, ExitCode> {
    let filter = args.filter.filter(false)?;
    let (nodes, selected) = nodes::selected(runtime, cluster, &filter)?;
    let of = match (args.filter.pod.as_deref(), args.filter.namespace.as_deref()) {
        (Some(pod), None) => format!("of pod {pod}"),
        (Some(pod), Some(namespace)) => format!("of pod {namespace}/{pod}"),
        (None, Some(namespace)) => format!("of namespace {namespace}"),
        (None, None) => String::new(),
    };
    let mut versions = BTreeMap::<String, usize>::new();
    for node in &nodes {
        if let Ok(status) = &node.state {
            *versions.entry(status.version.clone()).or_default() += 1;
        }
    }
    let failed = nodes::problems(&nodes, false).into_iter();
    let subject = Subject {
        time: &now(),
        of: &of,
        nodes: nodes.len(),
        failed: failed.map(|(node, why)| (node.to_owned(), why)).collect(),
        versions: versions.into_iter().collect(),
    };
    let page = page::html(&subject, &Summary::new(&nodes::shown(&nodes)));
    let written = file::write(&args.file, page.as_bytes());
    let failed = !nodes::any_answered(&nodes) || matches!(selected, Selected::NoSuchPod(_));
    Ok(if failed { EXIT_FAILURE.into() } else { written })
}
