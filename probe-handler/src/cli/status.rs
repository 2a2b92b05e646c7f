//! `probe-handler status`: requests the state of the daemon on this node, over its Unix socket.

mod client;
mod render;

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use http::StatusCode;

use super::config::DEFAULT_ADMIN_SOCKET;
use super::output;
use crate::observe::status::Status;
use support::build::VERSION;

/// Flags of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
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
    /// A row for each probe.
    Table,
    /// Also addresses, mesh, network namespace, canary, and probes that are not served.
    Wide,
    /// Everything as JSON, for programs.
    Json,
}

/// Requests and prints the state. Returns exit code 1 if the daemon does not answer, or with `--ready` or `--alive` is
/// not ready or not alive.
pub fn run(args: &StatusArgs) -> ExitCode {
    let socket = Path::new(&args.admin_socket);
    let path = match args {
        StatusArgs { ready: true, .. } => "/readyz",
        StatusArgs { alive: true, .. } => "/healthz",
        StatusArgs { .. } => "/status",
    };
    let (status, body) = match client::get(socket, path) {
        Ok(answer) => answer,
        Err(error) => return output::fail(&error.to_string()),
    };
    if status != StatusCode::OK {
        let text = String::from_utf8_lossy(&body);
        return output::fail(text.trim_end());
    }
    if args.ready || args.alive {
        return ExitCode::SUCCESS;
    }
    let status: Status = match serde_json::from_slice(&body) {
        Ok(status) => status,
        Err(error) => {
            return output::fail(&format!(
                "cannot read the daemon's answer ({error}): is it of another version than this \
                 command ({})?",
                VERSION
            ));
        }
    };
    output::print(|out| match args.output {
        Format::Table => write!(out, "{}", render::table(&status)),
        Format::Wide => write!(out, "{}", render::wide(&status)),
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, &status)?;
            writeln!(out)
        }
    })
}

#[cfg(test)]
mod tests;
