//! `kubectl probes explain`: why a pod was restarted, is unready or is not served.

use std::process::ExitCode;

use clap::Args;
use http::StatusCode;
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::cli::{EXIT_USAGE, TextFormat, unusable};
use crate::cluster::Cluster;
use crate::daemons::Daemon;
use crate::forward::{Answer, Failure};
use crate::gather::{gather, json};
use crate::nodes;
use status_view::explain::conclusion;
use status_view::explained::{Explained, text};
use status_view::filter::pod_name;
use status_view::history::PodHistory;
use status_view::output;

/// Flags of `explain`.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// The pod: NAMESPACE/POD, or POD with --namespace
    #[arg(value_name = "NAMESPACE/POD")]
    pod: String,

    /// The namespace of the pod
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// Output format
    #[arg(short, long, value_enum, default_value_t = TextFormat::Text)]
    output: TextFormat,
}

/// The history on one node, for programs.
#[derive(Serialize)]
struct OnNode<'a> {
    node: &'a str,
    #[serde(flatten)]
    explained: Explained<'a>,
}

/// Requests the history of the pod from all daemons: usually one of them has it.
pub fn run(runtime: &Runtime, cluster: &Cluster, args: &ExplainArgs) -> Result<ExitCode, ExitCode> {
    let (namespace, name) = pod_name(&args.pod, args.namespace.as_deref()).map_err(|mistake| {
        output::note(&mistake);
        ExitCode::from(EXIT_USAGE)
    })?;
    let path = format!("/explain/{namespace}/{name}");
    let answers = runtime.block_on(async {
        let daemons = cluster.daemons().await;
        let daemons = daemons.map_err(|error| unusable(&error.to_string()))?;
        Ok::<_, ExitCode>(gather(cluster, &daemons, &path, history).await)
    })?;
    let mut found = Vec::new();
    let mut failed = Vec::new();
    for (daemon, answer) in answers {
        match answer {
            Ok(Some(pod)) => found.push((daemon, pod)),
            Ok(None) => {}
            Err(failure) => failed.push((daemon, failure)),
        }
    }
    let failed = failed
        .iter()
        .map(|(daemon, failure): &(Daemon, Failure)| (daemon.node.as_str(), failure.to_string()));
    let failed = nodes::problem_table(&failed.collect::<Vec<_>>(), output::width());
    if found.is_empty() {
        let why = format!(
            "no daemon that answered has a pod {namespace}/{name}: 'kubectl probes get -n {namespace}' lists the pods of \
             that namespace"
        );
        output::note(why.as_str());
        if !failed.is_empty() {
            output::note(failed.trim_end());
        }
        return Ok(output::EXIT_FAILURE.into());
    }
    let text = document(&found, args.output).map_err(|why| output::fail(&why))?;
    Ok(output::print(|out| out.write_all(text.as_bytes())))
}

/// `None` if the daemon has no such pod.
fn history(answer: &Answer) -> Result<Option<PodHistory>, Failure> {
    let body = String::from_utf8_lossy(&answer.body);
    match answer.status {
        StatusCode::NOT_FOUND if body.contains("has no pod") => Ok(None),
        StatusCode::NOT_FOUND => Err(Failure::Daemon(
            "the daemon's version is too old to have a history of pods".to_owned(),
        )),
        _ => json(answer).map(Some),
    }
}

fn document(found: &[(Daemon, PodHistory)], format: TextFormat) -> Result<String, String> {
    let conclusions: Vec<_> = found.iter().map(|(_, pod)| conclusion(pod)).collect();
    let of_nodes = found.iter().zip(&conclusions);
    if format == TextFormat::Text {
        let texts = of_nodes.map(|((daemon, pod), conclusion)| {
            format!("node {}\n{}", daemon.node, text(pod, conclusion))
        });
        return Ok(texts.collect::<Vec<_>>().join("\n"));
    }
    let of_nodes = of_nodes.map(|((daemon, pod), conclusion)| OnNode {
        node: &daemon.node,
        explained: Explained { conclusion, pod },
    });
    let of_nodes: Vec<_> = of_nodes.collect();
    let cannot = |error: &dyn std::fmt::Display| format!("cannot write the history: {error}");
    match format {
        TextFormat::Yaml => serde_yaml_ng::to_string(&of_nodes).map_err(|error| cannot(&error)),
        _ => serde_json::to_string_pretty(&of_nodes)
            .map(|json| json + "\n")
            .map_err(|error| cannot(&error)),
    }
}
