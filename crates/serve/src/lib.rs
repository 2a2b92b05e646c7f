//! Accepts redirected connections, classifies them by protocol, and checks, splices or relays them.

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
pub mod flips;
pub mod flows;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod grpc_answer;
pub mod history;
mod identify;
mod idle;
pub mod metrics;
pub mod note;
mod observed;
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

pub use run::{given_up, is_timeout};

/// While draining, the backlog counts as empty once no connection has arrived for this long. A connection
/// that was redirected before the programs were detached is in the backlog within microseconds.
const DRAIN_QUIET: Duration = Duration::from_millis(100);

/// How long to wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Serves the connections that the eBPF programs redirect to it.
pub struct Handler {
    /// Identifies the kubelet's connections.
    pub flows: Arc<dyn Flows>,
    /// The endpoints that it serves.
    pub table: Arc<EndpointTable>,
    /// Counts connections and verdicts.
    pub metrics: Arc<Metrics>,
    /// Whether the kubelet's process also runs other components (k3s, MicroK8s): see
    /// `kernel::kubelet::Kubelet::is_shared_process`.
    pub shared_process: Arc<AtomicBool>,
    /// File descriptors for use when no others are left.
    pub reserve: Arc<Reserve>,
    /// Serves pods whose checks are costly.
    pub slow: SlowLane,
    /// Called when a pod's checks have cost so much that it is not served for a while.
    pub exclude: Box<dyn Fn(&PodId) + Send + Sync>,
    /// Set to true to end [`Handler::serve`].
    pub drain: watch::Sender<bool>,
}

impl Handler {
    /// Accepts and serves connections while `worker`, on whose thread this runs, has the turn, until [`Self::drain`] becomes
    /// true. Then serves the connections that remain in the backlog, and returns when the last connection has ended or is
    /// idle. Has no deadline: dropping it ends all connections at once. Call it once for each listener and worker.
    pub async fn serve(self: Arc<Self>, worker: Arc<Worker>, listener: StdListener) {
        let mut drain = self.drain.subscribe();
        let mut connections = JoinSet::new();
        let mut failing = false;
        let mut turns = worker.turns();
        let mut listener = Listener {
            socket: listener,
            accepting: None,
        };
        loop {
            if let Err(error) = listener.set(worker.has_turn()) {
                // The next attempt may get a descriptor from the reserve.
                if !self.reserve.use_for(&error) {
                    warn!(%error, "cannot accept connections");
                }
            }
            let must_retry = listener.accepting.is_none() && worker.has_turn();
            tokio::select! {
                accepted = listener.accept() => {
                    failing = self.accepted(accepted, &worker, &mut connections, failing).await;
                    // Serve this connection before accepting the next.
                    yield_now().await;
                }
                Some(done) = connections.join_next() => reap(done),
                Ok(()) = turns.changed() => {}
                () = sleep(ACCEPT_PAUSE), if must_retry => {}
                () = drained(&mut drain) => break,
            }
        }
        // On failure another worker accepts the connections in the backlog.
        let _ = listener.set(true);
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

    /// Starts serving an accepted connection. Returns whether accepting failed; `failing`: whether it failed the last time.
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

/// The listener of one worker. All workers share one socket, each through its own descriptor. It is registered only with
/// the runtime of the worker that has the turn, so that a new connection wakes no other worker.
struct Listener {
    socket: StdListener,
    accepting: Option<TcpListener>,
}

impl Listener {
    /// Registers the listener with the runtime, or removes it from there.
    ///
    /// # Errors
    /// Those of `dup` and `epoll_ctl`.
    fn set(&mut self, accepting: bool) -> io::Result<()> {
        if !accepting {
            self.accepting = None;
        } else if self.accepting.is_none() {
            self.accepting = Some(TcpListener::from_std(self.socket.try_clone()?)?);
        }
        Ok(())
    }

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match &self.accepting {
            Some(listener) => listener.accept().await,
            None => std::future::pending().await,
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
