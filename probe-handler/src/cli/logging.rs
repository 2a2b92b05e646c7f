//! Logs: text for people at a terminal, JSON for collectors, to standard error.

use std::io::{self, IsTerminal};

use serde::Serialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::TryInitError;

use super::log_queue::{LogQueue, Words};
use support::missing::Missing;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is none.
    #[error("--log {filter:?} is no filter; give a level (info) or module=level pairs")]
    Filter {
        /// As given.
        filter: String,
        /// Why.
        source: ParseError,
    },
    /// Lines can't be written.
    #[error("cannot start the thread that writes the log")]
    Thread(#[source] io::Error),
    /// Something else logs already.
    #[error("logging is set up already")]
    Twice(#[from] TryInitError),
}

/// Sends the process' logs to standard error, as far as `filter` lets them through. Once per process. What is
/// returned has to be flushed before the process ends. While lines can't be written, that is noted in `missing`.
///
/// # Errors
/// `filter` is none, no thread can be started, or logging is set up already.
pub fn init(format: LogFormat, filter: &str, missing: Missing) -> Result<LogQueue, Error> {
    use tracing_subscriber::util::SubscriberInitExt;

    let terminal = io::stderr().is_terminal();
    let env_filter = parse_filter(filter).map_err(|source| Error::Filter {
        filter: filter.to_owned(),
        source,
    })?;
    let json = is_json(format, terminal);
    let words = if json { Words::Json } else { Words::Text };
    let queue = LogQueue::new(io::stderr(), words, missing).map_err(Error::Thread)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(env_filter)
        .with_writer(queue.clone());
    if json {
        builder.json().flatten_event(true).finish().try_init()?;
    } else {
        builder.with_ansi(terminal).finish().try_init()?;
    }
    Ok(queue)
}

/// Reads a filter such as `info` or `info,probe_handler::handler=debug`.
pub(super) fn parse_filter(filter: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(filter)
}

const fn is_json(format: LogFormat, terminal: bool) -> bool {
    match format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_unless_a_person_looks() {
        assert!(is_json(LogFormat::Auto, false));
        assert!(!is_json(LogFormat::Auto, true));
        assert!(is_json(LogFormat::Json, true));
        assert!(!is_json(LogFormat::Text, false));
    }
}
