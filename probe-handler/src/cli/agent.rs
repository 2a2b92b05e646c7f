//! `probe-handler agent`: the daemon.

use std::process::ExitCode;

use super::config::{AgentArgs, AgentConfig};
use super::logging::LogFilter;
use super::{refuse, service};
use support::missing::Missing;

/// Validates the configuration and calls `start` with it: see `service::run`.
pub fn run(
    args: AgentArgs,
    start: impl FnOnce(AgentConfig, Missing, LogFilter) -> anyhow::Result<()>,
) -> ExitCode {
    let config = match AgentConfig::try_from(args) {
        Ok(config) => config,
        Err(mistakes) => return refuse(&mistakes),
    };
    let text = config.to_text();
    let (log_format, log) = (config.log_format, config.log.clone());
    let missing = Missing::default();
    let log = (log_format, log.as_str(), missing.clone());
    service::run("probe-handler", &text, log, |filter| {
        start(config, missing, filter)
    })
}
