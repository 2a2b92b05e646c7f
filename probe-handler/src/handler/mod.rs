//! Accepting redirected connections, telling protocols apart, routing, answering.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, warn};

use crate::observe::metrics::Metrics;

use self::flows::Flows;
use self::table::EndpointTable;

mod answer;
pub mod classify;
mod client_hello;
mod connection;
pub mod flows;
pub mod note;
mod pump;
mod run;
pub mod table;
#[cfg(test)]
mod tests;
mod visit;

/// How long no connection must have come for the backlog to count as empty while draining. A connection
/// that was redirected before the programs were taken off is in the backlog within microseconds.
const DRAIN_QUIET: Duration = Duration::from_millis(100);

/// How long to wait after a failed accept: with no descriptors left it fails at once, again and again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Serves the connections that the kernel side sends our way.
pub struct Handler {
    /// Tells the kubelet's connections from all others.
    pub flows: Arc<dyn Flows>,
    /// What is served.
    pub table: Arc<EndpointTable>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// Whether the kubelet's process has more to do than a kubelet (k3s, MicroK8s): see
    /// [`Kubelet::is_part_of_more`](crate::kernel::kubelet::Kubelet::is_part_of_more).
    pub part_of_more: Arc<AtomicBool>,
}

impl Handler {
    /// Accepts and serves connections until `drain` becomes true (or its sender is gone), then those
    /// that were already on their way, and returns when the last one is done. Has no deadline: dropping
    /// it ends all connections at once. One call for each listener.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, mut drain: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        let mut failing = false;
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    failing = self.accepted(accepted, &mut connections, failing).await;
                    // Serve it before looking for the next one.
                    yield_now().await;
                }
                Some(done) = connections.join_next() => reap(done),
                () = drained(&mut drain) => break,
            }
        }
        while let Ok(accepted) = timeout(DRAIN_QUIET, listener.accept()).await {
            failing = self.accepted(accepted, &mut connections, failing).await;
        }
        drop(listener);
        debug!(in_flight = connections.len(), "backlog drained");
        while let Some(done) = connections.join_next().await {
            reap(done);
        }
    }

    /// Starts serving what was accepted; whether accepting fails. `failing`: it did the last time.
    async fn accepted(
        self: &Arc<Self>,
        accepted: io::Result<(TcpStream, std::net::SocketAddr)>,
        connections: &mut JoinSet<()>,
        failing: bool,
    ) -> bool {
        match accepted {
            Ok((stream, peer)) => {
                let handler = Arc::clone(self);
                let since = Instant::now();
                let _ = connections.spawn(async move {
                    handler.connection(stream, peer, since).await;
                });
                false
            }
            Err(error) => {
                let _ = self.metrics.accept_errors.inc();
                if !failing {
                    warn!(%error, "accepting connections fails; is RLIMIT_NOFILE too low?");
                }
                sleep(ACCEPT_PAUSE).await;
                true
            }
        }
    }
}

/// Returns when `drain` is true or its sender is gone.
async fn drained(drain: &mut watch::Receiver<bool>) {
    let _ = drain.wait_for(|drain| *drain).await;
}

fn reap(done: Result<(), tokio::task::JoinError>) {
    if let Err(failure) = done
        && failure.is_panic()
    {
        error!(%failure, "a connection's task panicked");
    }
}
