//! A verb that runs until it is stopped, and logs.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use super::logging::{LogFilter, LogFormat};
use super::{EXIT_FAILURE, logging};
use status_view::output;
use support::build::{COMMIT, VERSION};
use support::missing::Missing;

/// The exit code of a Rust program that panics.
const PANICKED: u8 = 101;
/// Maximum time to write the remaining log lines at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Sets up logging, logs `name` and `config`, and calls `start`, which may change the filter of the log and returns at the end of a drain or when the start
/// fails. While the log can't be written, `missing` shows it.
pub(super) fn run(
    name: &str,
    config: &str,
    (log_format, log, missing): (LogFormat, &str, Missing),
    start: impl FnOnce(LogFilter) -> anyhow::Result<()>,
) -> ExitCode {
    let (log, filter) = match logging::init(log_format, log, missing) {
        Ok(both) => both,
        Err(error) => return output::fail(&format!("{error:#}")),
    };
    tracing::info!(
        version = VERSION,
        commit = COMMIT,
        pid = std::process::id(),
        %config,
        "{name} starts"
    );
    std::panic::set_hook(Box::new(|panic| {
        // The panic is logged, because the queue of the log never blocks. The default hook writes to standard error,
        // which may be a full pipe, and would block the thread.
        let thread = std::thread::current();
        tracing::error!(
            thread = thread.name(),
            "a bug in probe-handler, report it: {panic}"
        );
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            tracing::error!("{trace}");
        }
    }));
    // Flushes the log even after a panic.
    let code = match catch_unwind(AssertUnwindSafe(|| start(filter))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            tracing::error!("{name} stops: {error:#}");
            EXIT_FAILURE.into()
        }
        Err(_) => PANICKED.into(),
    };
    log.flush(LAST_WORDS);
    code
}
