//! The heartbeat, which shows the eBPF programs that the handler accepts connections.

/// Reports to the programs whether the handler accepts connections.
pub trait Pulse: Send + Sync + 'static {
    /// Reports that it does now. Must be repeated within the heartbeat's timeout.
    fn beat(&self);

    /// Reports that the daemon runs, whether or not the handler accepts connections.
    fn live(&self);

    /// Reports that the handler accepts none: from now until the next [`Pulse::beat`] the programs redirect no connection.
    fn stop(&self);
}
