//! `probe-handler webhook`: the admission server.

use std::process::ExitCode;

use super::config::{WebhookArgs, WebhookConfig};
use super::{refuse, service};
use support::missing::Missing;

/// Validates the configuration and calls `start` with it: see `service::run`.
pub fn run(args: WebhookArgs, start: impl FnOnce(WebhookConfig) -> anyhow::Result<()>) -> ExitCode {
    let config = match WebhookConfig::try_from(args) {
        Ok(config) => config,
        Err(mistakes) => return refuse(&mistakes),
    };
    let text = config.to_text();
    let (log_format, log) = (config.log_format, config.log.clone());
    let log = (log_format, log.as_str(), Missing::default());
    service::run("probe-handler webhook", &text, log, |_| start(config))
}
