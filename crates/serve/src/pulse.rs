//! The sign of life by which the kernel side knows that the handler takes connections.

/// Tells the programs whether the handler takes connections.
pub trait Pulse: Send + Sync + 'static {
    /// It does, now. To be repeated within the heartbeat's timeout.
    fn beat(&self);

    /// It does not, until the next [`Pulse::beat`]: the programs leave every connection alone at once.
    fn stop(&self);
}
