//! `probe-handler agent`: the daemon.

use std::process::ExitCode;

use super::config::{AgentArgs, AgentConfig};
use super::{EXIT_FAILURE, logging, output, refuse, version};

/// Checks the configuration, sets up logging, says what runs, and runs it by `start` until that
/// returns: at the end of a drain, or when it can't start.
pub fn run(args: AgentArgs, start: impl FnOnce(AgentConfig) -> anyhow::Result<()>) -> ExitCode {
    let config = match AgentConfig::try_from(args) {
        Ok(config) => config,
        Err(mistakes) => return refuse(&mistakes),
    };
    if let Err(error) = logging::init(config.log_format, &config.log) {
        return output::fail(&error.to_string());
    }
    tracing::info!(
        version = version::VERSION,
        commit = version::COMMIT,
        pid = std::process::id(),
        config = %config.to_json(),
        "probe-handler starts"
    );
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("probe-handler stops: {error:#}");
            EXIT_FAILURE.into()
        }
    }
}
