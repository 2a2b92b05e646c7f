//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cluster::{self, Cluster};
use crate::{advice, changes, explain, get, report, sysdump, watch};
use status_view::filter::Filter;
use status_view::output;
use support::build::DESCRIPTION;

/// Invalid usage, or no access to the cluster's daemons. The same as clap's.
pub const EXIT_USAGE: u8 = 2;

/// Shows the health probes of all nodes, as probe-handler's daemons see them.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-probes",
    bin_name = "kubectl probes",
    version = DESCRIPTION,
    max_term_width = 100,
    after_help = "It needs permission to list pods and to port-forward in the namespace of the daemons, and no other. A node \
                  whose daemon does not answer is a row of the output, with the reason.\n\n\
                  Exit codes: 0 success; 1 no node answered, no daemon has the named pod, or with --exit-code there is a \
                  failure; 2 invalid usage, no usable kubeconfig, the API server does not answer or refuses the list of \
                  daemons, or there is no daemon."
)]
struct Cli {
    #[command(flatten)]
    cluster: ClusterArgs,

    #[command(subcommand)]
    command: Command,
}

/// How to reach the daemons.
#[derive(Clone, Debug, Args)]
pub struct ClusterArgs {
    /// The kubeconfig, instead of KUBECONFIG and ~/.kube/config
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The context in the kubeconfig, instead of the current one
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,

    /// The namespace in which the daemons run
    #[arg(
        long,
        global = true,
        value_name = "NAMESPACE",
        default_value = "probe-handler-system"
    )]
    pub daemon_namespace: String,

    /// The time for one node's answer
    #[arg(long, global = true, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub timeout: Duration,

    /// How many nodes are requested at the same time
    #[arg(
        long,
        global = true,
        value_name = "COUNT",
        default_value_t = 64,
        value_parser = clap::value_parser!(u16).range(1..=512)
    )]
    pub parallel: u16,
}

/// Which pods and probes to show.
#[derive(Clone, Debug, Args)]
pub struct FilterArgs {
    /// Show only this pod: NAMESPACE/POD, or POD with --namespace
    #[arg(value_name = "NAMESPACE/POD")]
    pub pod: Option<String>,

    /// Show only the pods of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

impl FilterArgs {
    /// The filter; only of probes that fail, if `failing`.
    ///
    /// # Errors
    /// The exit code, after a note about the mistake.
    pub fn filter(&self, failing: bool) -> Result<Filter, ExitCode> {
        let (pod, namespace) = (self.pod.as_deref(), self.namespace.as_deref());
        Filter::new(pod, namespace, failing).map_err(|mistake| unusable(&mistake))
    }
}

/// Output format of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A line for each probe, in 80 columns.
    Table,
    /// Also addresses, mesh, network namespace, canary, timeouts and details.
    Wide,
    /// Everything as JSON, for programs.
    Json,
    /// Everything as YAML.
    Yaml,
}

/// Output format of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TextFormat {
    /// For people.
    Text,
    /// Everything as JSON, for programs.
    Json,
    /// Everything as YAML.
    Yaml,
}

/// The verbs.
#[derive(Debug, Subcommand)]
enum Command {
    /// Show the probes of all nodes, and their last results
    Get(get::GetArgs),
    /// Show them again and again, until Ctrl-C
    Watch(watch::WatchArgs),
    /// Explain why a pod was restarted, is unready or is not served
    Explain(explain::ExplainArgs),
    /// Show which probes of observed pods would have another result if they were served
    Changes(changes::ChangesArgs),
    /// Show what to change about probes: timeouts that are too short, results that flap, ports without a listener
    Advice(advice::AdviceArgs),
    /// Write an HTML page for the review of a rollout: coverage, what would change, latencies against timeouts
    Report(report::ReportArgs),
    /// Write an archive with the state, configuration, metrics and log of each daemon, for an analysis elsewhere
    Sysdump(sysdump::SysdumpArgs),
}

/// Runs the plugin and returns its exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // If standard error fails, there is nowhere to report it.
            let _ = error.print();
            return match error.use_stderr() {
                true => EXIT_USAGE.into(),
                false => ExitCode::SUCCESS,
            };
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return output::fail(&format!("cannot start a runtime: {error}")),
    };
    let done = runtime.block_on(cluster::connect(&cli.cluster));
    let done = done
        .map_err(|error| unusable(&error.to_string()))
        .and_then(|cluster| verb(&runtime, &cluster, &cli.command));
    // A request of a node that hangs is not awaited.
    runtime.shutdown_background();
    done.unwrap_or_else(|code| code)
}

fn verb(
    runtime: &tokio::runtime::Runtime,
    cluster: &Cluster,
    command: &Command,
) -> Result<ExitCode, ExitCode> {
    match command {
        Command::Get(args) => get::run(runtime, cluster, args),
        Command::Watch(args) => watch::run(runtime, cluster, args),
        Command::Explain(args) => explain::run(runtime, cluster, args),
        Command::Changes(args) => changes::run(runtime, cluster, args),
        Command::Advice(args) => advice::run(runtime, cluster, args),
        Command::Report(args) => report::run(runtime, cluster, args),
        Command::Sysdump(args) => sysdump::run(runtime, cluster, args),
    }
}

/// Prints why there is no access, and returns the exit code.
pub fn unusable(message: &str) -> ExitCode {
    output::note(message);
    EXIT_USAGE.into()
}

/// A positive number of seconds, such as 0.5.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() && time <= Duration::from_secs(3600) => Ok(time),
        _ => Err("expected more than 0 and at most 3600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_time_is_a_positive_number_of_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "nan", "1e9", "5s", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
