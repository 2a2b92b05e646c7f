//! Who is calling: the kubelet's connections carry a flow, everyone else's do not.

use std::net::SocketAddr;

pub use probe_handler_common::flow::FlowState;

/// A redirected connection, as the kernel side recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedFlow {
    /// The endpoint the kubelet dialled.
    pub original: SocketAddr,
    /// What may be done for it.
    pub state: FlowState,
}

/// Where flows come from.
pub trait Flows: Send + Sync + 'static {
    /// Takes the flow of the connection whose peer is `peer`; a second call for it finds nothing.
    /// None: no hook of ours saw this connection being made.
    fn take(&self, peer: SocketAddr) -> Option<AcceptedFlow>;
}
