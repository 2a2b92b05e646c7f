//! `probe-handler status`: requests the state of the daemon on this node, over its Unix socket.

mod client;

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use http::StatusCode;

use super::EXIT_USAGE;
use super::config::DEFAULT_ADMIN_SOCKET;
use status_view::advice::Advice;
use status_view::filter::{Filter, Selected};
use status_view::status::Status;
use status_view::{advice, changes, output, render};
use support::build::VERSION;

/// Interval between two requests of `--watch`.
const WATCH: Duration = Duration::from_secs(2);

/// Flags of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Show only this pod: NAMESPACE/POD, or POD with --namespace
    #[arg(value_name = "NAMESPACE/POD", conflicts_with_all = ["ready", "alive"])]
    pod: Option<String>,

    /// Show only the pods of this namespace
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with_all = ["ready", "alive"])]
    namespace: Option<String>,

    /// Show only probes whose last result is a failure, and pods in scope that are not served
    #[arg(long, conflicts_with_all = ["ready", "alive"])]
    failing: bool,

    /// Show which probes of observed pods would have another result if they were served
    #[arg(long, conflicts_with_all = ["ready", "alive", "failing"])]
    changes: bool,

    /// Show what to change about probes: timeouts that are too short, results that flap, ports without a listener
    #[arg(long, conflicts_with_all = ["ready", "alive", "failing", "changes", "watch"])]
    advice: bool,

    /// Show it every two seconds, until Ctrl-C
    #[arg(long, conflicts_with_all = ["ready", "alive"])]
    watch: bool,

    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,

    /// The daemon's Unix socket
    #[arg(
        long,
        value_name = "PATH",
        env = "PROBE_HANDLER_ADMIN_SOCKET",
        default_value = DEFAULT_ADMIN_SOCKET
    )]
    admin_socket: String,

    /// Exit with 0 if the daemon is ready; else print what it waits for and exit with 1
    #[arg(long, conflicts_with_all = ["alive", "output"])]
    ready: bool,

    /// Exit with 0 if the daemon is alive, else with 1
    #[arg(long, conflicts_with = "output")]
    alive: bool,
}

/// Output format of `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line for each probe, in 80 columns.
    Table,
    /// Also addresses, mesh, network namespace, canary, timeouts and details.
    Wide,
    /// Everything as JSON, for programs.
    Json,
    /// Everything as YAML.
    Yaml,
}

/// Requests and prints the state. Returns exit code 1 if the daemon does not answer, has no such pod, or with `--ready` or
/// `--alive` is not ready or not alive.
pub fn run(args: &StatusArgs) -> ExitCode {
    let socket = Path::new(&args.admin_socket);
    if args.ready || args.alive {
        let path = if args.ready { "/readyz" } else { "/healthz" };
        return match request(socket, path) {
            Ok(_) => ExitCode::SUCCESS,
            Err(message) => output::fail(&message),
        };
    }
    let filter = Filter::new(args.pod.as_deref(), args.namespace.as_deref(), args.failing)
        .map(|filter| filter.changes(args.changes));
    let filter = match filter {
        Ok(filter) => filter,
        Err(mistake) => {
            output::note(&mistake);
            return EXIT_USAGE.into();
        }
    };
    if args.advice {
        return show_advice(socket, &filter, args.output);
    }
    if args.watch {
        return watch(socket, &filter, args.output);
    }
    let (status, selected) = match select(socket, &filter) {
        Ok(selected) => selected,
        Err(message) => return output::fail(&message),
    };
    if let Selected::NoSuchPod(why) = selected {
        return output::fail(&why);
    }
    let (text, notes) = match show(&status, &filter, &selected, args.output) {
        Ok(shown) => shown,
        Err(message) => return output::fail(&message),
    };
    for note in notes {
        output::note(&note);
    }
    output::print(|out| out.write_all(text.as_bytes()))
}

/// Shows the advice about the pods that `filter` selects.
fn show_advice(socket: &Path, filter: &Filter, format: Format) -> ExitCode {
    let found = select(socket, filter).and_then(|(_, selected)| match selected {
        Selected::NoSuchPod(why) => Err(why),
        Selected::Nothing(_) | Selected::Some => {
            let mut all: Vec<Advice> = read(&request(socket, "/advice")?)?;
            all.retain(|one| filter.is_named(&one.namespace, &one.pod));
            Ok(all)
        }
    });
    let cannot = |error: &dyn std::fmt::Display| format!("cannot write the advice: {error}");
    let text = found.and_then(|all| match format {
        Format::Table | Format::Wide => {
            let all = all.iter().map(|one| (None, one));
            Ok(advice::text(all, output::width()))
        }
        Format::Json => serde_json::to_string_pretty(&all)
            .map(|json| json + "\n")
            .map_err(|error| cannot(&error)),
        Format::Yaml => serde_yaml_ng::to_string(&all)
            .map(|yaml| format!("---\n{yaml}"))
            .map_err(|error| cannot(&error)),
    });
    match text {
        Ok(text) => output::print(|out| out.write_all(text.as_bytes())),
        Err(message) => output::fail(&message),
    }
}

/// Shows the state again and again, until standard output is closed. Reports only once that the daemon does not answer,
/// because during an upgrade another daemon may replace it.
fn watch(socket: &Path, filter: &Filter, format: Format) -> ExitCode {
    let clear = io::stdout().is_terminal() && matches!(format, Format::Table | Format::Wide);
    let mut said = Vec::new();
    let mut has_answered = false;
    loop {
        let shown = select(socket, filter)
            .and_then(|(status, selected)| show(&status, filter, &selected, format));
        let (text, notes) = match shown {
            Ok(shown) => shown,
            Err(message) if !has_answered => return output::fail(&message),
            Err(message) => (String::new(), vec![message]),
        };
        has_answered = true;
        if !text.is_empty() {
            let written = output::write(|out| {
                if clear {
                    out.write_all(b"\x1b[H\x1b[2J")?;
                }
                out.write_all(text.as_bytes())?;
                match format {
                    Format::Table | Format::Wide if !clear => writeln!(out),
                    _ => Ok(()),
                }
            });
            match written {
                Ok(true) => {}
                Ok(false) => return ExitCode::SUCCESS,
                Err(message) => return output::fail(&message),
            }
        }
        // Clearing the screen removes this text, so it is printed each time.
        for note in &notes {
            if clear || !said.contains(note) {
                output::note(note);
            }
        }
        said = notes;
        if output::is_closed_within(WATCH) {
            return ExitCode::SUCCESS;
        }
    }
}

/// The answer of the daemon.
///
/// # Errors
/// There is no answer, or its status is not 200: a message.
pub(super) fn request(socket: &Path, path: &str) -> Result<Vec<u8>, String> {
    let (status, body) = client::get(socket, path).map_err(|error| error.to_string())?;
    if status == StatusCode::OK {
        return Ok(body.to_vec());
    }
    Err(String::from_utf8_lossy(&body).trim_end().to_owned())
}

/// Reads a daemon's answer.
///
/// # Errors
/// The answer can't be parsed: a message.
pub(super) fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| {
        format!(
            "cannot read the daemon's answer ({error}): does the daemon have another version than this command ({VERSION})?"
        )
    })
}

fn select(socket: &Path, filter: &Filter) -> Result<(Status, Selected), String> {
    let mut status: Status = read(&request(socket, "/status")?)?;
    let selected = filter.apply(&mut status);
    Ok((status, selected))
}

/// The texts for standard output and standard error.
fn show(
    status: &Status,
    filter: &Filter,
    selected: &Selected,
    format: Format,
) -> Result<(String, Vec<String>), String> {
    let mut notes = match selected {
        Selected::Some => Vec::new(),
        Selected::Nothing(why) | Selected::NoSuchPod(why) => vec![why.clone()],
    };
    let cannot = |error: &dyn std::fmt::Display| format!("cannot write the state: {error}");
    if filter.changes {
        return match format {
            Format::Table | Format::Wide if !notes.is_empty() => Ok((String::new(), notes)),
            Format::Table | Format::Wide => {
                Ok((changes::changes(&status.observed, output::width()), notes))
            }
            Format::Json => serde_json::to_string_pretty(&status.observed)
                .map(|json| (json + "\n", notes))
                .map_err(|error| cannot(&error)),
            Format::Yaml => serde_yaml_ng::to_string(&status.observed)
                .map(|yaml| (format!("---\n{yaml}"), notes))
                .map_err(|error| cannot(&error)),
        };
    }
    let is_nothing = !notes.is_empty();
    let text = match format {
        Format::Json => {
            let json = serde_json::to_string_pretty(status).map_err(|error| cannot(&error))?;
            json + "\n"
        }
        Format::Yaml => {
            let yaml = serde_yaml_ng::to_string(status).map_err(|error| cannot(&error))?;
            format!("---\n{yaml}")
        }
        Format::Table | Format::Wide if is_nothing => String::new(),
        Format::Wide => render::wide(status, filter.is_all()),
        Format::Table => {
            let width = output::width();
            let (text, fit) = render::table(status, filter.is_all(), width);
            notes.extend(fit.note(width.unwrap_or_default()));
            text
        }
    };
    Ok((text, notes))
}

#[cfg(test)]
mod tests;
