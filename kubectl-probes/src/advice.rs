//! `kubectl probes advice`: what to change about probes.

use std::process::ExitCode;

use clap::Args;
use http::StatusCode;
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::cli::{FilterArgs, TextFormat, unusable};
use crate::cluster::Cluster;
use crate::forward::{Answer, Failure};
use crate::gather::{gather, json};
use crate::nodes;
use status_view::advice::{Advice, text};
use status_view::output::{self, EXIT_FAILURE};

/// Flags of `advice`.
#[derive(Clone, Debug, Args)]
pub struct AdviceArgs {
    #[command(flatten)]
    filter: FilterArgs,

    /// Output format
    #[arg(short, long, value_enum, default_value_t = TextFormat::Text)]
    output: TextFormat,
}

/// The advice of a node, for programs.
#[derive(Serialize)]
struct OnNode<'a> {
    node: &'a str,
    #[serde(flatten)]
    advice: &'a Advice,
}

/// Shows the advice of all nodes.
pub fn run(runtime: &Runtime, cluster: &Cluster, args: &AdviceArgs) -> Result<ExitCode, ExitCode> {
    let filter = args.filter.filter(false)?;
    let answers = runtime.block_on(async {
        let daemons = cluster.daemons().await;
        let daemons = daemons.map_err(|error| unusable(&error.to_string()))?;
        Ok::<_, ExitCode>(gather(cluster, &daemons, "/advice", advice).await)
    })?;
    let mut found = Vec::new();
    let mut failed = Vec::new();
    let mut any_answered = false;
    for (daemon, answer) in &answers {
        let node = daemon.node.as_str();
        match answer {
            Ok(all) => {
                any_answered = true;
                let named = all
                    .iter()
                    .filter(|one| filter.is_named(&one.namespace, &one.pod));
                found.extend(named.map(|one| (Some(node), one)));
            }
            Err(failure) => failed.push((node, failure.to_string())),
        }
    }
    // Stable: within a pod in the order of the probes.
    found.sort_by_key(|(node, one)| (&one.namespace, &one.pod, *node));
    let width = output::width();
    let shown = match args.output {
        TextFormat::Text if any_answered => Ok(text(found, width)),
        TextFormat::Text => Ok(String::new()),
        format => document(&found, format),
    };
    let shown = shown.map_err(|why| output::fail(&why))?;
    let printed = output::print(|out| out.write_all(shown.as_bytes()));
    let failed = nodes::problem_table(&failed, width);
    if !failed.is_empty() {
        output::note(failed.trim_end());
    }
    Ok(if any_answered {
        printed
    } else {
        EXIT_FAILURE.into()
    })
}

fn advice(answer: &Answer) -> Result<Vec<Advice>, Failure> {
    match answer.status {
        StatusCode::NOT_FOUND => Err(Failure::Daemon(
            "the daemon's version is too old to give advice".to_owned(),
        )),
        _ => json(answer),
    }
}

fn document(found: &[(Option<&str>, &Advice)], format: TextFormat) -> Result<String, String> {
    let all = found.iter().map(|(node, advice)| OnNode {
        node: node.unwrap_or_default(),
        advice,
    });
    let all: Vec<_> = all.collect();
    let cannot = |error: &dyn std::fmt::Display| format!("cannot write the advice: {error}");
    match format {
        TextFormat::Yaml => serde_yaml_ng::to_string(&all).map_err(|error| cannot(&error)),
        _ => serde_json::to_string_pretty(&all)
            .map(|json| json + "\n")
            .map_err(|error| cannot(&error)),
    }
}
