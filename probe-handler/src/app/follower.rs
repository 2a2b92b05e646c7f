//! The registry task's handle of the task that follows one pod's namespace.

use std::net::SocketAddr;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// The task.
pub struct Follower {
    /// Distinguishes the task from earlier tasks of the same pod.
    pub generation: u64,
    /// Ends it.
    pub abort: AbortHandle,
    /// Receives the ports to which the kubelet could not connect.
    pub refused: mpsc::Sender<SocketAddr>,
    /// Used when the pod exists but is no longer served.
    pub withdraw: oneshot::Sender<()>,
}

impl Follower {
    /// Ends the task. If the pod still exists but is no longer served, the task first removes our rules in
    /// it.
    pub fn end(self, goes_on: bool) {
        match goes_on {
            // An error means that the task has ended.
            true => drop(self.withdraw.send(())),
            false => self.abort.abort(),
        }
    }
}
