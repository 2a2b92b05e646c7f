//! Reports Events of pods to the API server: changes of verdicts at once, and problems that `status` shows every few
//! seconds.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::pods_state::PodsState;
use super::status::Reporter;
use crate::cli::config::{AgentConfig, PodSource};
use crate::observe::pod_events::{Findings, of_flip};
use report::outcome::Outcomes;
use report::send::{self, Events};
use serve::history::now_ms;
use serve::metrics::Metrics;
use sources::kube::client;
use support::backoff::Timeouts;

/// Maximum number of queued changes of verdicts.
const WAITING: usize = 256;
/// Interval between checks of the state of pods.
const PERIOD: Duration = Duration::from_secs(5);

/// What is reported.
pub struct Reports {
    status: Arc<Reporter>,
    shared: Arc<Mutex<PodsState>>,
    metrics: Arc<Metrics>,
    outcomes: Arc<Outcomes>,
}

impl Reports {
    /// From these sources.
    pub fn new(
        status: &Arc<Reporter>,
        shared: &Arc<Mutex<PodsState>>,
        metrics: &Arc<Metrics>,
        outcomes: &Arc<Outcomes>,
    ) -> Self {
        Self {
            status: Arc::clone(status),
            shared: Arc::clone(shared),
            metrics: Arc::clone(metrics),
            outcomes: Arc::clone(outcomes),
        }
    }

    /// Sends Events. Never returns.
    ///
    /// # Errors
    /// No access to the API server is configured.
    pub async fn send(self, config: AgentConfig) -> anyhow::Result<()> {
        let PodSource::Kubernetes { node, .. } = config.pods else {
            return std::future::pending().await;
        };
        // Uses a separate connection, so that watches do not wait for Events.
        let client = client::connect().await?;
        let (events, queue) = send::queue(Arc::clone(&self.outcomes));
        let pauses = Timeouts {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(60),
            ..Timeouts::default()
        };
        tokio::join!(send::run(client, node, queue, pauses), self.find(events));
        Ok(())
    }

    async fn find(self, events: Events) {
        let (sender, mut flips) = mpsc::channel(WAITING);
        self.metrics.flips.send_to(sender);
        let mut findings = Findings::default();
        let mut looks = interval(PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(flip) = flips.recv() => events.add(of_flip(flip)),
                _ = looks.tick() => {
                    let parsed = self.shared.lock().parsed.clone();
                    let status = self.status.report();
                    for event in findings.update(&status, &parsed, now_ms()) {
                        events.add(event);
                    }
                }
            }
        }
    }
}
