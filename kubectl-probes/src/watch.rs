//! `kubectl probes watch`: the probes of all nodes, again and again.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::runtime::Runtime;

use crate::cli::{Format, unusable};
use crate::cluster::Cluster;
use crate::{get, nodes};
use status_view::output;

/// Flags of `watch`.
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    #[command(flatten)]
    get: get::GetArgs,

    /// The time between two requests
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

/// Shows the probes until standard output is closed. An API server that does not answer meanwhile is reported once.
pub fn run(runtime: &Runtime, cluster: &Cluster, args: &WatchArgs) -> Result<ExitCode, ExitCode> {
    let filter = args.get.filter()?;
    let format = args.get.output;
    let is_text = matches!(format, Format::Table | Format::Wide);
    let clear = io::stdout().is_terminal() && is_text;
    let mut said = Vec::new();
    let mut has_listed = false;
    loop {
        let shown = match nodes::states(runtime, cluster) {
            Ok(mut nodes) => {
                let selected = nodes::select(&mut nodes, &filter);
                let shown = get::show(&nodes, &filter, &selected, format);
                shown.map_err(|why| output::fail(&why))?
            }
            Err(error) if !has_listed => return Err(unusable(&error.to_string())),
            // The API server may be back at the next request.
            Err(error) => get::Text {
                text: String::new(),
                notes: vec![error.to_string()],
            },
        };
        has_listed = true;
        let written = output::write(|out| {
            if clear {
                out.write_all(b"\x1b[H\x1b[2J")?;
            }
            out.write_all(shown.text.as_bytes())?;
            match is_text && !clear && !shown.text.is_empty() {
                true => writeln!(out),
                false => Ok(()),
            }
        });
        match written {
            Ok(true) => {}
            Ok(false) => return Ok(ExitCode::SUCCESS),
            Err(message) => return Ok(output::fail(&message)),
        }
        // Clearing the screen removes this text, so it is printed each time.
        for note in &shown.notes {
            if clear || !said.contains(note) {
                output::note(note);
            }
        }
        said = shown.notes;
        if output::is_closed_within(Duration::from_secs(args.interval)) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}
