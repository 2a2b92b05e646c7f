//! Identifies the kubelet's connections: only they have a flow.

use std::net::SocketAddr;

/// Identifies one accepted connection among all others (see `probe_handler_common::flow::FlowKey`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    /// The peer's address and port.
    pub peer: SocketAddr,
    /// The peer's initial sequence number.
    pub isn: u32,
}

/// A redirected connection, as the eBPF programs recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedFlow {
    /// The endpoint the kubelet dialled.
    pub original: SocketAddr,
    /// Whether the kubelet has closed its socket already: then the flow is valid for a TCP probe's verdict only.
    pub closed: bool,
}

/// The flows that the eBPF programs recorded.
pub trait Flows: Send + Sync + 'static {
    /// Removes and returns the flow of the connection, so that a second call returns `None`. `None` also if
    /// no eBPF program recorded this connection.
    fn take(&self, connection: ConnectionId) -> Option<AcceptedFlow>;
}
