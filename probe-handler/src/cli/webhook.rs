//! `probe-handler webhook`: the admission server.

use std::process::ExitCode;
use std::time::Duration;

use super::config::{WebhookArgs, WebhookConfig};
use super::{EXIT_FAILURE, logging, output, refuse, version};

/// How long the log may take to be written at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Checks the configuration, sets up logging, says what runs, and runs it by `start` until that
/// returns: at the end of a drain, or when it can't start.
pub fn run(args: WebhookArgs, start: impl FnOnce(WebhookConfig) -> anyhow::Result<()>) -> ExitCode {
    let config = match WebhookConfig::try_from(args) {
        Ok(config) => config,
        Err(mistakes) => return refuse(&mistakes),
    };
    let log = match logging::init(config.log_format, &config.log) {
        Ok(log) => log,
        Err(error) => return output::fail(&error.to_string()),
    };
    tracing::info!(
        version = version::VERSION,
        commit = version::COMMIT,
        pid = std::process::id(),
        config = ?config,
        "probe-handler webhook starts"
    );
    let code = match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("probe-handler webhook stops: {error:#}");
            EXIT_FAILURE.into()
        }
    };
    log.flush(LAST_WORDS);
    code
}
