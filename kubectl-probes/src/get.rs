//! `kubectl probes get`: the probes of all nodes.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::cli::{FilterArgs, Format, unusable};
use crate::cluster::Cluster;
use crate::nodes::{self, Node};
use status_view::filter::{Filter, Selected};
use status_view::narrow;
use status_view::output::{self, EXIT_FAILURE};
use status_view::render;
use status_view::status::Status;
use support::build::VERSION;

/// Flags of `get`.
#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    #[command(flatten)]
    pub filter: FilterArgs,

    /// Show only probes whose last result is a failure, and pods in scope that are not served
    #[arg(long)]
    pub failing: bool,

    /// Exit with 1 if there is any of them, or a node has no answer
    #[arg(long, requires = "failing")]
    pub exit_code: bool,

    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// The state of one node in JSON and YAML.
#[derive(Serialize)]
struct StateOutput<'a> {
    status: &'a Status,
}

impl GetArgs {
    /// The filter that the flags describe.
    ///
    /// # Errors
    /// They are invalid: the exit code, after printing why.
    pub fn filter(&self) -> Result<Filter, ExitCode> {
        self.filter.filter(self.failing)
    }
}

/// Shows the probes once.
pub fn run(runtime: &Runtime, cluster: &Cluster, args: &GetArgs) -> Result<ExitCode, ExitCode> {
    let filter = args.filter()?;
    let mut nodes =
        nodes::states(runtime, cluster).map_err(|error| unusable(&error.to_string()))?;
    let selected = nodes::select(&mut nodes, &filter);
    let text = show(&nodes, &filter, &selected, args.output).map_err(|why| output::fail(&why))?;
    for note in text.notes {
        output::note(&note);
    }
    let printed = output::print(|out| out.write_all(text.text.as_bytes()));
    if printed != ExitCode::SUCCESS {
        return Ok(printed);
    }
    let found = selected == Selected::Some || nodes::any_failed(&nodes);
    let failed = !nodes::any_answered(&nodes)
        || matches!(selected, Selected::NoSuchPod(_))
        || (args.exit_code && found);
    Ok(if failed {
        EXIT_FAILURE.into()
    } else {
        ExitCode::SUCCESS
    })
}

/// The texts for standard output and standard error.
#[derive(Debug)]
pub struct Text {
    /// For standard output.
    pub text: String,
    /// For standard error.
    pub notes: Vec<String>,
}

/// The selected states as text.
///
/// # Errors
/// They can't be written: a message.
pub fn show(
    nodes: &[Node],
    filter: &Filter,
    selected: &Selected,
    format: Format,
) -> Result<Text, String> {
    let mut notes: Vec<_> = nodes::other_versions(nodes, VERSION).into_iter().collect();
    let is_nothing = match selected {
        Selected::Some => false,
        Selected::Nothing(why) | Selected::NoSuchPod(why) => {
            if nodes::any_answered(nodes) {
                notes.push(why.clone());
            }
            true
        }
    };
    let width = output::width();
    let of_daemons = filter.namespace.is_none();
    let problems = nodes::problem_table(&nodes::problems(nodes, of_daemons), width);
    let shown = nodes::shown(nodes);
    let mut text = match format {
        Format::Json | Format::Yaml => {
            let text = nodes::document(nodes, |status| StateOutput { status }, format)?;
            return Ok(Text { text, notes });
        }
        _ if is_nothing || shown.is_empty() => String::new(),
        Format::Wide => render::wide_rows(&shown).trim_start().to_owned(),
        Format::Table => {
            let (rows, fit) = narrow::rows(&shown, width);
            notes.extend(fit.note(width.unwrap_or_default()));
            rows
        }
    };
    if text.is_empty() && !is_nothing && !shown.is_empty() && filter.is_all() {
        text.push_str("no probes to serve\n");
    }
    if !text.is_empty() && !problems.is_empty() {
        text.push('\n');
    }
    text.push_str(&problems);
    Ok(Text { text, notes })
}
