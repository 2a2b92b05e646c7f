//! `probe-handler explain`: why a pod was restarted, is unready or is not served.

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::EXIT_USAGE;
use super::config::DEFAULT_ADMIN_SOCKET;
use super::status::{read, request};
use status_view::explain::conclusion;
use status_view::explained::{Explained, text};
use status_view::filter::pod_name;
use status_view::history::PodHistory;
use status_view::output;

/// Flags of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The pod: NAMESPACE/POD, or POD with --namespace
    #[arg(value_name = "NAMESPACE/POD")]
    pod: String,

    /// The namespace of the pod
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,

    /// The daemon's Unix socket
    #[arg(
        long,
        value_name = "PATH",
        env = "PROBE_HANDLER_ADMIN_SOCKET",
        default_value = DEFAULT_ADMIN_SOCKET
    )]
    admin_socket: String,
}

/// Output format of `explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The history, and one sentence, for people.
    Text,
    /// Everything as JSON, for programs.
    Json,
    /// Everything as YAML.
    Yaml,
}

/// Requests the history of the pod and prints it. Returns exit code 1 if the daemon does not answer or has no such pod.
pub fn run(args: &ExplainArgs) -> ExitCode {
    let (namespace, name) = match pod_name(&args.pod, args.namespace.as_deref()) {
        Ok(name) => name,
        Err(mistake) => {
            output::note(&mistake);
            return EXIT_USAGE.into();
        }
    };
    let path = format!("/explain/{namespace}/{name}");
    let answer = request(Path::new(&args.admin_socket), &path);
    let pod: PodHistory = match answer.and_then(|body| read(&body)) {
        Ok(pod) => pod,
        Err(message) => return output::fail(&message),
    };
    let conclusion = conclusion(&pod);
    let explained = Explained {
        conclusion: &conclusion,
        pod: &pod,
    };
    output::print(|out| match args.output {
        Format::Text => write!(out, "{}", text(&pod, &conclusion)),
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, &explained)?;
            writeln!(out)
        }
        Format::Yaml => {
            let yaml = serde_yaml_ng::to_string(&explained).map_err(std::io::Error::other)?;
            write!(out, "{yaml}")
        }
    })
}
