//! Accepting redirected connections, telling protocols apart, routing, answering.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, warn};

use crate::metrics::Metrics;
use model::PodId;

use self::flows::Flows;
use self::reserve::Reserve;
use self::slow_lane::SlowLane;
use self::table::EndpointTable;
use self::worker::Worker;

mod answer;
pub mod classify;
mod client_hello;
mod connection;
pub mod cost;
pub mod flows;
mod identify;
pub mod metrics;
pub mod note;
pub mod pulse;
mod relay;
pub mod reserve;
mod run;
pub mod saved_syn;
pub mod slow_lane;
pub mod table;
#[cfg(test)]
mod tests;
pub mod worker;

/// How long no connection must have come for the backlog to count as empty while draining. A connection
/// that was redirected before the programs were taken off is in the backlog within microseconds.
const DRAIN_QUIET: Duration = Duration::from_millis(100);

/// How long to wait after a failed accept.
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
    /// [`Kubelet::is_shared_process`](kernel::kubelet::Kubelet::is_shared_process).
    pub shared_process: Arc<AtomicBool>,
    /// Descriptors for hard times.
    pub reserve: Reserve,
    /// Where pods are served whose checks cost much.
    pub slow: SlowLane,
    /// Called when a pod's checks have cost so much that it is left alone.
    pub exclude: Box<dyn Fn(&PodId) + Send + Sync>,
}

impl Handler {
    /// Accepts and serves connections while it is the turn of `worker`, on whose thread this runs, until `drain` becomes true
    /// (or its sender is gone), then those that were already on their way, and returns when the last one is done. Has
    /// no deadline: dropping it ends all connections at once. One call for each listener and worker.
    pub async fn serve(
        self: Arc<Self>,
        worker: Arc<Worker>,
        listener: StdListener,
        mut drain: watch::Receiver<bool>,
    ) {
        let mut connections = JoinSet::new();
        let mut failing = false;
        let mut turns = worker.turns();
        let mut listener = Listener::Idle(listener);
        loop {
            listener = listener.set(worker.has_turn());
            tokio::select! {
                accepted = listener.accept() => {
                    failing = self.accepted(accepted, &worker, &mut connections, failing).await;
                    // Serve it before looking for the next one.
                    yield_now().await;
                }
                Some(done) = connections.join_next() => reap(done),
                Ok(()) = turns.changed() => {}
                () = drained(&mut drain) => break,
            }
        }
        listener = listener.set(true);
        while let Ok(accepted) = timeout(DRAIN_QUIET, listener.accept()).await {
            failing = self
                .accepted(accepted, &worker, &mut connections, failing)
                .await;
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
        accepted: io::Result<(TcpStream, SocketAddr)>,
        worker: &Arc<Worker>,
        connections: &mut JoinSet<()>,
        failing: bool,
    ) -> bool {
        match accepted {
            Ok((stream, peer)) => {
                let (handler, worker) = (Arc::clone(self), Arc::clone(worker));
                let since = Instant::now();
                let _ = connections.spawn(async move {
                    handler.identify(stream, peer, since, &worker).await;
                });
                false
            }
            Err(error) => {
                let _ = self.metrics.accept_errors.inc();
                if !self.reserve.use_for(&error) && !failing {
                    warn!(%error, "cannot accept connections");
                }
                sleep(ACCEPT_PAUSE).await;
                true
            }
        }
    }
}

/// A listener of one worker. Each worker has the same socket under a descriptor of its own; the runtime of a worker whose
/// turn it is not is not woken by it.
enum Listener {
    Accepting(TcpListener),
    Idle(StdListener),
}

impl Listener {
    fn set(self, accepting: bool) -> Self {
        match (self, accepting) {
            (Self::Idle(listener), true) => {
                match listener.try_clone().and_then(TcpListener::from_std) {
                    Ok(listener) => Self::Accepting(listener),
                    Err(error) => {
                        warn!(%error, "this thread cannot accept connections");
                        Self::Idle(listener)
                    }
                }
            }
            (Self::Accepting(listener), false) => match listener.into_std() {
                Ok(listener) => Self::Idle(listener),
                // Not in the runtime's power to refuse: it hands out what it was given.
                Err(error) => unreachable!("{error}"),
            },
            (unchanged, _) => unchanged,
        }
    }

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match self {
            Self::Accepting(listener) => listener.accept().await,
            Self::Idle(_) => std::future::pending().await,
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
