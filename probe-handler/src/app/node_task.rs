//! Decides the value of the node's condition `ProbeHandlerReady`, and starts the task that writes it.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;

use super::kubelet_task;
use crate::cli::config::{AgentConfig, PodSource};
use report::node::{self, Options, Ready};
use sources::kube::client;
use support::backoff::Timeouts;
use support::readiness::{Readiness, State};

/// Interval between checks.
const PERIOD: Duration = Duration::from_secs(1);
/// How long the daemon may take to start before the condition becomes false: during an upgrade the previous daemon still
/// serves.
const START: Duration = Duration::from_secs(60);
/// How long the daemon must have been unready before the condition becomes false: after a restart of the
/// kubelet the programs are attached again sooner.
const LASTING: Duration = Duration::from_secs(5);

/// Writes the condition and removes the taint. Never returns. `alive` is whether the handler makes progress.
///
/// # Errors
/// No access to the API server is configured.
pub async fn run(
    config: AgentConfig,
    readiness: Readiness,
    alive: impl Fn() -> Result<(), String> + Send,
) -> anyhow::Result<()> {
    let PodSource::Kubernetes { node, .. } = config.pods else {
        return std::future::pending().await;
    };
    let client = client::connect().await?;
    let options = Options {
        node,
        condition: config.node_condition,
        taint: config.startup_taint,
        pauses: Timeouts {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(60),
            ..Timeouts::default()
        },
    };
    let (sender, receiver) = watch::channel(None);
    let look = async {
        let mut decider = Decider::new(Instant::now());
        loop {
            let ready = decider.decide(
                Instant::now(),
                readiness.state(),
                &readiness.pending(),
                alive(),
            );
            if let Some(ready) = ready {
                let _ = sender.send_if_modified(|last| {
                    let news = last.as_ref() != Some(&ready);
                    *last = Some(ready);
                    news
                });
            }
            sleep(PERIOD).await;
        }
    };
    tokio::select! {
        () = node::run(client, options, receiver) => Ok(()),
        never = look => never,
    }
}

/// When the daemon was last ready.
struct Decider {
    /// The last time when it was ready; before the first such time, the start of the grace period.
    last: Instant,
    lasting: Duration,
}

impl Decider {
    fn new(started: Instant) -> Self {
        Self {
            last: started,
            lasting: START,
        }
    }

    /// The condition at `now`; `None`: unchanged.
    fn decide(
        &mut self,
        now: Instant,
        state: State,
        pending: &[String],
        alive: Result<(), String>,
    ) -> Option<Ready> {
        // Another daemon may have taken over.
        if state == State::Draining {
            return None;
        }
        let (reason, message) = match (alive, pending.first()) {
            (Ok(()), None) => {
                self.last = now;
                self.lasting = LASTING;
                return Some(Ready::True);
            }
            // Omits the details, which differ each time.
            (Err(_), _) => (
                "HandlerNotAlive",
                "the handler makes no progress; the daemon's log says which part".to_owned(),
            ),
            (Ok(()), Some(_)) if pending.iter().any(|one| one == kubelet_task::AWAITED) => (
                "KubeletNotAttached",
                "the daemon is not attached to the kubelet's cgroup".to_owned(),
            ),
            (Ok(()), Some(_)) => (
                "Starting",
                format!("the daemon waits for: {}", pending.join(", ")),
            ),
        };
        let lasts = now.saturating_duration_since(self.last) >= self.lasting;
        lasts.then_some(Ready::False { reason, message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(what: &str) -> Vec<String> {
        vec![what.to_owned()]
    }

    fn reason(ready: Option<Ready>) -> Option<&'static str> {
        match ready? {
            Ready::True => Some("Serving"),
            Ready::False { reason, .. } => Some(reason),
        }
    }

    #[test]
    fn a_daemon_that_starts_has_a_minute_and_one_that_served_five_seconds() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut decider = Decider::new(start);
        let kubelet = pending(kubelet_task::AWAITED);
        let mut decide = |seconds, state, pending: &[String]| {
            reason(decider.decide(after(seconds), state, pending, Ok(())))
        };
        assert_eq!(decide(59, State::Starting, &kubelet), None);
        let pods = pending("pods listed from the API server");
        assert_eq!(decide(60, State::Starting, &pods), Some("Starting"));
        assert_eq!(decide(61, State::Serving, &[]), Some("Serving"));
        assert_eq!(decide(65, State::Serving, &kubelet), None);
        assert_eq!(
            decide(66, State::Serving, &kubelet),
            Some("KubeletNotAttached")
        );
        assert_eq!(decide(70, State::Serving, &[]), Some("Serving"));
    }

    #[test]
    fn a_daemon_that_drains_changes_nothing() {
        let mut decider = Decider::new(Instant::now());
        let later = Instant::now() + 2 * START;
        let ready = decider.decide(later, State::Draining, &pending("draining"), Ok(()));
        assert_eq!(ready, None);
    }

    #[test]
    fn a_handler_that_hangs_does_not_serve() {
        let mut decider = Decider::new(Instant::now());
        let later = Instant::now() + 2 * START;
        let ready = decider.decide(later, State::Serving, &[], Err("hangs".to_owned()));
        assert_eq!(reason(ready), Some("HandlerNotAlive"));
    }
}
