//! The thread for pods whose checks cost much: they are served last.

use std::net::TcpStream as StdStream;
use std::sync::{Arc, Weak};

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::table::Endpoint;
use super::worker::Worker;
use super::{Handler, reap};

/// A connection of the kubelet's to a pod of the slow lane.
pub(super) struct Handover {
    kubelet: StdStream,
    endpoint: Arc<Endpoint>,
    since: Instant,
    /// Dropped when it is served.
    _served: oneshot::Sender<()>,
}

/// Where connections are handed over to the slow lane.
pub struct SlowLane(mpsc::UnboundedSender<Handover>);

impl SlowLane {
    /// The lane, and what its thread serves.
    pub fn new() -> (Self, SlowConnections) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), SlowConnections(receiver))
    }

    /// Has the connection served there, and waits until it is. A connection that can't be handed over is dropped with its
    /// thread.
    pub(super) async fn serve(&self, kubelet: TcpStream, endpoint: Arc<Endpoint>, since: Instant) {
        let (served, done) = oneshot::channel();
        let Ok(kubelet) = kubelet.into_std() else {
            return;
        };
        let _ = self.0.send(Handover {
            kubelet,
            endpoint,
            since,
            _served: served,
        });
        // An error says that it was served.
        let _ = done.await;
    }
}

/// The connections that were handed over. At most as many as the kubelet makes to those pods; each of them bounds its
/// checks in flight.
pub struct SlowConnections(mpsc::UnboundedReceiver<Handover>);

impl SlowConnections {
    /// Serves them until the lane is gone.
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
                        let Handover { kubelet, endpoint, since, _served } = handover;
                        if let Ok(kubelet) = TcpStream::from_std(kubelet) {
                            handler.serve_slowly(kubelet, &endpoint, since, &worker).await;
                        }
                    });
                }
                Some(done) = connections.join_next() => reap(done),
            }
        }
    }
}
