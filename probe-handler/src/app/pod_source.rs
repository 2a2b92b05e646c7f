//! Starts the source of pods.

use std::sync::Arc;

use anyhow::Context;
use tokio::sync::mpsc;

use super::Tasks;
use super::settings::LiveSettings;
use crate::cli::config::{AgentConfig, PodSource};
use sources::kube::health::Health;
use sources::kube::last_known::LastKnown;
use sources::source::SourceEvent;
use sources::{dir, kube};
use support::missing::Missing;
use support::readiness::Readiness;

/// Starts the source of pods, which sends `events`.
///
/// # Errors
/// There is no access to the API server.
pub async fn start(
    config: &AgentConfig,
    settings: &LiveSettings,
    readiness: &Readiness,
    (health, missing): (Arc<Health>, Missing),
    events: mpsc::Sender<SourceEvent>,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    let selection = settings.selection();
    match &config.pods {
        PodSource::Dir(path) => {
            let path = path.clone();
            let _ = tasks.spawn(async move {
                dir::run(path, selection, events, missing)
                    .await
                    .context("the source of pods ended")
            });
        }
        PodSource::Kubernetes { node, last_known } => {
            let client = kube::client::connect().await?;
            let options = kube::Options {
                node: node.clone(),
                selection,
                timeouts: support::backoff::Timeouts::default(),
                last_known: last_known
                    .clone()
                    .map(|path| LastKnown::new(path, node.clone(), missing)),
            };
            let listed = readiness.block("pods listed from the API server");
            let _ = tasks.spawn(async move {
                kube::run(client, options, health, listed, events).await;
                Ok(())
            });
        }
    }
    Ok(())
}
