//! Who is calling: the kubelet's connections carry a flow, everyone else's do not.

use std::net::SocketAddr;

/// One accepted connection, told from every other one (see [`probe_handler_common::flow::FlowKey`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    /// Its peer's address and port.
    pub peer: SocketAddr,
    /// Its peer's initial sequence number.
    pub isn: u32,
}

/// A redirected connection, as the kernel side recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedFlow {
    /// The endpoint the kubelet dialled.
    pub original: SocketAddr,
    /// Whether the kubelet has closed its end already: good for a TCP probe's verdict, for nothing else.
    pub closed: bool,
}

/// Where flows come from.
pub trait Flows: Send + Sync + 'static {
    /// Takes the flow of the connection; a second call for it finds nothing.
    /// None: no hook of ours saw this connection being made.
    fn take(&self, connection: ConnectionId) -> Option<AcceptedFlow>;
}
