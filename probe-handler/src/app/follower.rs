//! The task that follows one pod's namespace, as the registry's task holds it.

use std::net::SocketAddr;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// The task.
pub struct Follower {
    /// Distinguishes it from earlier tasks of the same pod.
    pub generation: u64,
    /// Ends it.
    pub abort: AbortHandle,
    /// Takes the ports that the kubelet could not connect.
    pub refused: mpsc::Sender<SocketAddr>,
    /// Used when the pod exists but is no longer served.
    pub withdraw: oneshot::Sender<()>,
}

impl Follower {
    /// Ends the task; if the pod goes on without being served, after our rules in it are removed.
    pub fn end(self, goes_on: bool) {
        match goes_on {
            // An error says that the task has ended.
            true => drop(self.withdraw.send(())),
            false => self.abort.abort(),
        }
    }
}
