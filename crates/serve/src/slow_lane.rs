//! Serves costly pods on a separate thread with low priority.

use std::net::TcpStream as StdStream;
use std::sync::{Arc, Weak};

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::classify::Decision;
use super::table::Endpoint;
use super::worker::Worker;
use super::{Handler, reap};

/// A connection from the kubelet to a pod of the slow lane.
pub(super) struct Handover {
    kubelet: StdStream,
    endpoint: Arc<Endpoint>,
    since: Instant,
    /// The first bytes, if they have been read, and the decision about them.
    read: Option<(Vec<u8>, Decision)>,
    /// Dropped when the connection has been served.
    _served: oneshot::Sender<()>,
}

/// Hands connections over to the slow lane's thread.
pub struct SlowLane(mpsc::UnboundedSender<Handover>);

impl SlowLane {
    /// The lane, and the connections for its thread to serve.
    pub fn new() -> (Self, SlowConnections) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), SlowConnections(receiver))
    }

    /// Hands the connection over and waits until it has been served. Drops the connection if the lane's thread has ended.
    pub(super) async fn serve(
        &self,
        kubelet: TcpStream,
        endpoint: Arc<Endpoint>,
        since: Instant,
        read: Option<(Vec<u8>, Decision)>,
    ) {
        let (served, done) = oneshot::channel();
        let Ok(kubelet) = kubelet.into_std() else {
            return;
        };
        let _ = self.0.send(Handover {
            kubelet,
            endpoint,
            since,
            read,
            _served: served,
        });
        // An error means that the connection has been served: the sender is only ever dropped.
        let _ = done.await;
    }
}

/// The connections that were handed over. Unbounded, because the kubelet makes only so many to those pods, and each pod
/// has a limit of checks in flight.
pub struct SlowConnections(mpsc::UnboundedReceiver<Handover>);

impl SlowConnections {
    /// Serves them until the [`SlowLane`] or the handler is dropped.
    pub async fn run(mut self, handler: Weak<Handler>, worker: Arc<Worker>) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                handover = self.0.recv() => {
                    let Some((handover, handler)) = handover.zip(handler.upgrade()) else {
                        return;
                    };
                    let worker = Arc::clone(&worker);
                    let _ = connections.spawn(async move {
                        let Handover { kubelet, endpoint, since, read, _served } = handover;
                        if let Ok(kubelet) = TcpStream::from_std(kubelet) {
                            handler.serve_slowly(kubelet, &endpoint, since, read, &worker).await;
                        }
                    });
                }
                Some(done) = connections.join_next() => reap(done),
            }
        }
    }
}
