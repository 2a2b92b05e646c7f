//! Identifies a connection by its flow and its endpoint, before its first bytes are read.

use std::net::SocketAddr;
use std::pin::pin;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::Handler;
use super::answer::reset;
use super::connection::{Connection, FIRST_BYTES_TIMEOUT};
use super::cost::{Lane, metered};
use super::flows::{AcceptedFlow, ConnectionId};
use super::relay::relay;
use super::saved_syn;
use super::table::{Endpoint, NativeRoutes, Route, Routes};
use super::worker::Worker;
use probe::Finding;

impl Handler {
    /// Serves one connection, accepted at `since`, on the thread of `worker`.
    pub(super) async fn identify(
        &self,
        kubelet: TcpStream,
        peer: SocketAddr,
        since: Instant,
        worker: &Worker,
    ) {
        let _ = self.metrics.accepted.inc();
        let Some(flow) = self.flow(&kubelet, peer) else {
            debug!(%peer, "resetting connection: not from the kubelet");
            let _ = self.metrics.unknown_peers.inc();
            return reset(kubelet);
        };
        let address = SocketAddr::new(flow.original.ip().to_canonical(), flow.original.port());
        match self.table.get(address) {
            Some(endpoint) if flow.closed => self.closed(kubelet, &endpoint, since).await,
            None if flow.closed => {}
            Some(endpoint) => match endpoint.pod.cost.lane(since.into_std()) {
                Lane::Prompt => {
                    self.serve_connection(kubelet, &endpoint, since, worker)
                        .await
                }
                Lane::Slow | Lane::Excluded => self.slow.serve(kubelet, endpoint, since).await,
            },
            None => {
                debug!(%address, "relaying connection: its endpoint was removed");
                self.metrics.relayed("endpoint_gone");
                Box::pin(relay(kubelet, address, &[])).await;
            }
        }
    }

    /// The flow of this connection. Its peer's address and port are not enough to find it: an earlier connection may have
    /// had the same.
    fn flow(&self, kubelet: &TcpStream, peer: SocketAddr) -> Option<AcceptedFlow> {
        let isn = saved_syn::take_isn(kubelet)?;
        self.flows.take(ConnectionId { peer, isn })
    }

    /// Serves a connection to a costly pod, on the thread of `worker`.
    pub(super) async fn serve_slowly(
        &self,
        kubelet: TcpStream,
        endpoint: &Endpoint,
        since: Instant,
        worker: &Worker,
    ) {
        if endpoint.pod.cost.lane(Instant::now().into_std()) == Lane::Excluded {
            self.metrics.relayed("too_costly");
            return Box::pin(relay(kubelet, endpoint.address, &[])).await;
        }
        self.serve_connection(kubelet, endpoint, since, worker)
            .await;
    }

    async fn serve_connection(
        &self,
        kubelet: TcpStream,
        endpoint: &Endpoint,
        since: Instant,
        worker: &Worker,
    ) {
        let connection = Connection {
            handler: self,
            endpoint,
            kubelet,
            bytes: Vec::with_capacity(1024),
            since,
        };
        let exclude = || (self.exclude)(&endpoint.pod.id);
        let serving = pin!(connection.serve());
        metered(serving, &endpoint.pod.cost, worker, exclude).await;
    }

    /// Concludes a connection that the kubelet has already closed: it is a TCP probe, or needs no answer.
    async fn closed(&self, mut kubelet: TcpStream, endpoint: &Endpoint, since: Instant) {
        let Routes::Native(NativeRoutes { tcp: Some(tcp), .. }) = &endpoint.routes else {
            return;
        };
        let mut byte = [0];
        match timeout(FIRST_BYTES_TIMEOUT, kubelet.read(&mut byte)).await {
            // It sent bytes: not a TCP probe.
            Ok(Ok(1..)) | Err(_) => {}
            Ok(Ok(0) | Err(_)) => self.connected(endpoint, tcp, since),
        }
    }

    /// Concludes a TCP probe, which passes with the kubelet's connect(): the eBPF programs redirect it only if the
    /// app listens on the port.
    pub(super) fn connected(&self, endpoint: &Endpoint, tcp: &Route, since: Instant) {
        self.conclude(endpoint, tcp, Finding::healthy(""), since);
    }
}
