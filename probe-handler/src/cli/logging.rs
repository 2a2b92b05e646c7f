//! Logs: text for people at a terminal, JSON for collectors, to standard error.

use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::sync::Arc;

use serde::Serialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::reload;
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

/// Changes the filter of log lines.
#[derive(Clone)]
pub struct LogFilter(Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl LogFilter {
    /// From now on only lines that pass `filter` are logged.
    ///
    /// # Errors
    /// `filter` is invalid, or the process ends.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        let parsed = parse_filter(filter).map_err(|error| error.to_string())?;
        (self.0)(parsed).map_err(|error| error.to_string())
    }
}

/// Writes the process's logs that pass `filter` to standard error. Call it once per process, and flush the
/// returned queue before the process ends. While lines can't be written, `missing` shows it.
///
/// # Errors
/// `filter` is invalid, the thread can't be started, or logging is already set up.
pub fn init(
    format: LogFormat,
    filter: &str,
    missing: Missing,
) -> Result<(LogQueue, LogFilter), Error> {
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
    let filter = if json {
        let builder = builder.json().flatten_event(true).with_filter_reloading();
        let handle = builder.reload_handle();
        builder.finish().try_init()?;
        LogFilter(Arc::new(move |filter| handle.reload(filter)))
    } else {
        let color = std::env::var_os("NO_COLOR");
        let builder = builder
            .with_ansi(has_color(terminal, color.as_deref()))
            .with_filter_reloading();
        let handle = builder.reload_handle();
        builder.finish().try_init()?;
        LogFilter(Arc::new(move |filter| handle.reload(filter)))
    };
    Ok((queue, filter))
}

/// Parses a filter such as `info` or `info,serve=debug`.
pub(super) fn parse_filter(filter: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(filter)
}

/// Whether text has colors; `no_color` is the value of variable `NO_COLOR` (no-color.org).
fn has_color(terminal: bool, no_color: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty)
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
    fn only_a_terminal_has_colors_and_not_with_no_color() {
        assert!(has_color(true, None));
        assert!(
            has_color(true, Some(OsStr::new(""))),
            "as if it were not set"
        );
        assert!(!has_color(true, Some(OsStr::new("1"))));
        assert!(!has_color(false, None));
    }

    #[test]
    fn auto_is_text_on_a_terminal_and_else_json() {
        assert!(is_json(LogFormat::Auto, false));
        assert!(!is_json(LogFormat::Auto, true));
        assert!(is_json(LogFormat::Json, true));
        assert!(!is_json(LogFormat::Text, false));
    }
}
