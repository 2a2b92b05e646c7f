//! `kubectl probes sysdump`: what is known about each daemon, in one archive for an analysis elsewhere.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use serde::Serialize;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::cli::unusable;
use crate::cluster::Cluster;
use crate::daemons::Daemon;
use crate::file;
use crate::forward::{self, Failure};
use crate::gather::each;
use crate::redact::Queries;
use status_view::output::{self, EXIT_FAILURE};
use status_view::time::now;
use support::build::DESCRIPTION;

/// Maximum number of lines and bytes of a log.
const LOG_LINES: i64 = 10_000;
const LOG_BYTES: i64 = 4 << 20;
/// The paths that are requested from each daemon, and the names of the files that contain the answers.
const REQUESTS: [(&str, &str); 4] = [
    ("/status", "status.json"),
    ("/debug/config", "config.json"),
    ("/metrics", "metrics.txt"),
    ("/readyz", "readyz.txt"),
];
/// The directory in the archive.
const ROOT: &str = "probe-handler-sysdump";

/// Flags of `sysdump`.
#[derive(Clone, Debug, Args)]
pub struct SysdumpArgs {
    /// The file to write, - for standard output
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "probe-handler-sysdump.tar.gz"
    )]
    file: PathBuf,
}

/// The files of a node, and what could not be obtained.
#[derive(Debug, Default)]
struct Dump {
    files: Vec<(&'static str, String)>,
    errors: Vec<String>,
    version: Option<String>,
}

/// The list of nodes in the archive.
#[derive(Serialize)]
struct Index<'a> {
    time: &'a str,
    plugin: &'a str,
    /// The version of the API server, if the user may read it.
    kubernetes: Option<String>,
    nodes: Vec<IndexNode<'a>>,
}

#[derive(Serialize)]
struct IndexNode<'a> {
    node: &'a str,
    pod: &'a str,
    version: Option<&'a str>,
    errors: &'a [String],
}

/// Writes the archive.
pub fn run(runtime: &Runtime, cluster: &Cluster, args: &SysdumpArgs) -> Result<ExitCode, ExitCode> {
    let (dumps, kubernetes) = runtime.block_on(async {
        let daemons = cluster.daemons().await;
        let daemons = daemons.map_err(|error| unusable(&error.to_string()))?;
        let timeout = cluster.timeout;
        let dumps = each(cluster, &daemons, move |api, daemon| async move {
            Ok(dump(&api, &daemon, timeout).await)
        });
        Ok::<_, ExitCode>((dumps.await, cluster.version().await))
    })?;
    let dumps: Vec<(Daemon, Dump)> = dumps
        .into_iter()
        .map(|(daemon, dump)| {
            let dump = dump.unwrap_or_else(|failure: Failure| Dump {
                errors: vec![failure.to_string()],
                ..Dump::default()
            });
            (daemon, dump)
        })
        .collect();
    let archive = archive(&dumps, kubernetes);
    let archive =
        archive.map_err(|error| output::fail(&format!("cannot make the archive: {error}")))?;
    let written = file::write(&args.file, &archive);
    let is_empty = dumps.iter().all(|(_, dump)| dump.version.is_none());
    Ok(if is_empty {
        EXIT_FAILURE.into()
    } else {
        written
    })
}

/// Everything about one daemon. Sends one request at a time, because the daemon serves few at once.
async fn dump(api: &Api<Pod>, daemon: &Daemon, timeout: std::time::Duration) -> Dump {
    let mut dump = Dump::default();
    let mut queries = Queries::default();
    for (path, name) in REQUESTS {
        let answer = match forward::get(api, daemon, path, timeout).await {
            Ok(answer) => answer,
            Err(failure) => {
                dump.errors.push(format!("{path}: {failure}"));
                // Skips the other requests, which would wait as long.
                if path == "/status" {
                    break;
                }
                continue;
            }
        };
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        if path == "/status" {
            // If the state can't be parsed, its queries can't be found and removed, here and in the other
            // files.
            let Ok(state) = serde_json::from_str::<Value>(&text) else {
                dump.errors.push(format!("{path}: the answer is not JSON"));
                return dump;
            };
            queries = Queries::of(&state);
            dump.version = state["version"].as_str().map(str::to_owned);
        }
        // Keeps the answer of a daemon that is not ready, because it contains the reason.
        if answer.status != StatusCode::OK && path != "/readyz" {
            dump.errors
                .push(format!("{path}: the daemon answered {}", answer.status));
        }
        dump.files.push((name, text));
    }
    for (name, previous) in [("log.txt", false), ("log-previous.txt", true)] {
        if previous && !daemon.has_restarted {
            continue;
        }
        let params = LogParams {
            tail_lines: Some(LOG_LINES),
            limit_bytes: Some(LOG_BYTES),
            timestamps: true,
            previous,
            ..LogParams::default()
        };
        let log = tokio::time::timeout(timeout * 2, api.logs(&daemon.pod, &params)).await;
        match log {
            Ok(Ok(log)) => dump.files.push((name, log)),
            Ok(Err(kube::Error::Api(status))) => {
                dump.errors.push(format!("{name}: {}", status.message))
            }
            Ok(Err(error)) => dump.errors.push(format!("{name}: {error}")),
            Err(_) => dump.errors.push(format!("{name}: no answer in time")),
        }
    }
    for (_, text) in &mut dump.files {
        *text = queries.remove(text);
    }
    dump
}

fn archive(dumps: &[(Daemon, Dump)], kubernetes: Option<String>) -> std::io::Result<Vec<u8>> {
    let time = now();
    let index = Index {
        time: &time,
        plugin: DESCRIPTION,
        kubernetes,
        nodes: dumps
            .iter()
            .map(|(daemon, dump)| IndexNode {
                node: &daemon.node,
                pod: &daemon.pod,
                version: dump.version.as_deref(),
                errors: &dump.errors,
            })
            .collect(),
    };
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    let index = serde_json::to_string_pretty(&index)? + "\n";
    append(&mut tar, "index.json", &index)?;
    for (daemon, dump) in dumps {
        // Uses the pod's name for a pod without a node, because several pods may have none.
        let directory = match daemon.node.as_str() {
            "(none)" => file_name(&daemon.pod),
            node => file_name(node),
        };
        for (name, text) in &dump.files {
            append(&mut tar, &format!("nodes/{directory}/{name}"), text)?;
        }
    }
    tar.into_inner()?.finish()
}

fn append(
    tar: &mut tar::Builder<GzEncoder<Vec<u8>>>,
    name: &str,
    text: &str,
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o600);
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    header.set_mtime(since.map_or(0, |since| since.as_secs()));
    tar.append_data(&mut header, format!("{ROOT}/{name}"), text.as_bytes())
}

/// `name` as a file's name: names of nodes should be DNS names, but only the API server checks that.
fn file_name(name: &str) -> String {
    let name: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' || c == '.' {
                c
            } else {
                '_'
            }
        })
        .collect();
    match name.trim_matches('.') {
        "" => "unnamed".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_file_leads_nowhere_else() {
        for (name, file) in [
            ("worker-1.example.com", "worker-1.example.com"),
            ("../../etc", "_.._etc"),
            ("..", "unnamed"),
            ("a/b", "a_b"),
        ] {
            assert_eq!(file_name(name), file);
        }
    }
}
