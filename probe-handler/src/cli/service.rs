//! A verb that runs until it is asked to end, with a log of its own.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use super::logging::LogFormat;
use super::{EXIT_FAILURE, logging, output};
use support::build::{COMMIT, VERSION};
use support::missing::Missing;

/// The exit code of Rust's own way out of a panic.
const PANICKED: u8 = 101;
/// How long the log may take to be written at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Sets up logging, says what runs (`name`, by `config`), and runs it by `start` until that returns: at the end of
/// a drain, or when it can't start. While the log can't be written, that is noted in `missing`.
pub(super) fn run(
    name: &str,
    config: &str,
    (log_format, log, missing): (LogFormat, &str, Missing),
    start: impl FnOnce() -> anyhow::Result<()>,
) -> ExitCode {
    let log = match logging::init(log_format, log, missing) {
        Ok(log) => log,
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
        // By the log, which waits for nobody: the usual hook writes to standard error by itself, which may be a pipe
        // that is full, and with it the thread would stand still.
        let thread = std::thread::current();
        tracing::error!(
            thread = thread.name(),
            "a fault of probe-handler's, report it: {panic}"
        );
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            tracing::error!("{trace}");
        }
    }));
    // The log is flushed in any case.
    let code = match catch_unwind(AssertUnwindSafe(start)) {
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
