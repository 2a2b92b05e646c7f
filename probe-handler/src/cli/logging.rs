//! Logs: text for people at a terminal, JSON for collectors, to standard error.

use std::io::{self, IsTerminal};

use serde::Serialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::TryInitError;

use super::log_queue::{LogQueue, Words};
use support::missing::Missing;

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    /// Text, for people.
    Text,
    /// JSON, one object per line.
    Json,
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is invalid.
    #[error("invalid --log {filter:?}: expected a level (info) or module=level pairs")]
    Filter {
        /// The filter as given.
        filter: String,
        /// Why it is invalid.
        source: ParseError,
    },
    /// The thread that writes lines can't be started.
    #[error("cannot start the thread that writes the log")]
    Thread(#[source] io::Error),
    /// Another logger is already installed.
    #[error("logging is already set up")]
    Twice(#[from] TryInitError),
}

/// Writes the process's logs that pass `filter` to standard error. Call it once per process, and flush the
/// returned queue before the process ends. While lines can't be written, `missing` shows it.
///
/// # Errors
/// `filter` is invalid, the thread can't be started, or logging is already set up.
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

/// Parses a filter such as `info` or `info,serve=debug`.
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
    fn auto_is_text_on_a_terminal_and_else_json() {
        assert!(is_json(LogFormat::Auto, false));
        assert!(!is_json(LogFormat::Auto, true));
        assert!(is_json(LogFormat::Json, true));
        assert!(!is_json(LogFormat::Text, false));
    }
}
