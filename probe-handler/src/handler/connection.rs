//! Whose connection it is, and what for: everything before its first bytes.

use std::net::SocketAddr;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::Handler;
use super::answer::reset;
use super::flows::FlowState;
use super::pump::relay;
use super::table::{Endpoint, NativeRoutes, Route, Routes};
use super::visit::{PATIENCE, Visit};
use crate::check::Finding;

impl Handler {
    /// Serves one connection, accepted at `since`.
    pub(super) async fn connection(&self, kubelet: TcpStream, peer: SocketAddr, since: Instant) {
        let _ = self.metrics.accepted.inc();
        let flow = match self.flows.take(peer) {
            Some(flow) if flow.state != FlowState::Stale => flow,
            unknown => {
                debug!(%peer, stale = unknown.is_some(), "no connection of the kubelet's: reset");
                let _ = self.metrics.unknown_peers.inc();
                return reset(kubelet);
            }
        };
        let address = SocketAddr::new(flow.original.ip().to_canonical(), flow.original.port());
        let closed = flow.state == FlowState::Closed;
        match self.table.get(address) {
            Some(endpoint) if closed => self.closed(kubelet, &endpoint, since).await,
            None if closed => {}
            Some(endpoint) => {
                let visit = Visit {
                    handler: self,
                    endpoint: &endpoint,
                    kubelet,
                    bytes: Vec::with_capacity(1024),
                    since,
                };
                visit.serve().await;
            }
            None => {
                debug!(%address, "endpoint is gone: relayed");
                self.metrics.relayed("endpoint_gone");
                Box::pin(relay(kubelet, address, &[])).await;
            }
        }
    }

    /// A connection that the kubelet has already closed: a TCP probe, or nobody to answer to.
    async fn closed(&self, mut kubelet: TcpStream, endpoint: &Endpoint, since: Instant) {
        let Routes::Native(NativeRoutes { tcp: Some(tcp), .. }) = &endpoint.routes else {
            return;
        };
        let mut byte = [0];
        match timeout(PATIENCE, kubelet.read(&mut byte)).await {
            // It had said something: another kind of probe.
            Ok(Ok(1..)) | Err(_) => {}
            Ok(Ok(0) | Err(_)) => self.connected(endpoint, tcp, since),
        }
    }

    /// The kubelet's connect() was all that it wanted. The kernel side lets it through only to a port on
    /// which the app listens.
    pub(super) fn connected(&self, endpoint: &Endpoint, tcp: &Route, since: Instant) {
        self.conclude(endpoint, tcp, Finding::healthy(""), since);
    }
}
