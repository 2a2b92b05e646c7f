//! Identifies a connection by its flow and its endpoint, before its first bytes are read.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::Handler;
use super::answer::reset;
use super::classify::Decision;
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
                Lane::Prompt => self.serve_promptly(kubelet, endpoint, since, worker).await,
                Lane::Slow | Lane::Excluded => {
                    self.slow.serve(kubelet, endpoint, since, None).await;
                }
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

    /// Serves a connection on the thread of `worker`, unless the pod turns out to be costly before the app is dialled: its
    /// connections arrive at the same moment, and the cost of the first one is known only when it is dialled.
    async fn serve_promptly(
        &self,
        kubelet: TcpStream,
        endpoint: Arc<Endpoint>,
        since: Instant,
        worker: &Worker,
    ) {
        let mut connection = Connection {
            handler: self,
            endpoint: &endpoint,
            kubelet,
            bytes: Vec::with_capacity(1024),
            since,
        };
        let decision = self.first_bytes(&mut connection, worker).await;
        if let Some(decision) = &decision
            && endpoint.pod.cost.lane(Instant::now().into_std()) != Lane::Prompt
        {
            let read = Some((connection.bytes, decision.clone()));
            let kubelet = connection.kubelet;
            return self
                .slow
                .serve(kubelet, Arc::clone(&endpoint), since, read)
                .await;
        }
        self.serve_connection(connection, decision, worker).await;
    }

    /// Serves a connection to a costly pod, on the thread of `worker`. `read`: its first bytes, if they have been read, and
    /// the decision about them.
    pub(super) async fn serve_slowly(
        &self,
        kubelet: TcpStream,
        endpoint: &Endpoint,
        since: Instant,
        read: Option<(Vec<u8>, Decision)>,
        worker: &Worker,
    ) {
        let (bytes, decision) = match read {
            Some((bytes, decision)) => (bytes, Some(decision)),
            None => (Vec::with_capacity(1024), None),
        };
        if endpoint.pod.cost.lane(Instant::now().into_std()) == Lane::Excluded {
            self.metrics.relayed("too_costly");
            return Box::pin(relay(kubelet, endpoint.address, &bytes)).await;
        }
        let mut connection = Connection {
            handler: self,
            endpoint,
            kubelet,
            bytes,
            since,
        };
        let decision = match decision {
            Some(decision) => Some(decision),
            None => self.first_bytes(&mut connection, worker).await,
        };
        self.serve_connection(connection, decision, worker).await;
    }

    async fn first_bytes(
        &self,
        connection: &mut Connection<'_>,
        worker: &Worker,
    ) -> Option<Decision> {
        let pod = &connection.endpoint.pod;
        let exclude = || (self.exclude)(&pod.id);
        let reading = pin!(connection.first_bytes());
        metered(reading, &pod.cost, worker, exclude).await
    }

    async fn serve_connection(
        &self,
        connection: Connection<'_>,
        decision: Option<Decision>,
        worker: &Worker,
    ) {
        let pod = &connection.endpoint.pod;
        let exclude = || (self.exclude)(&pod.id);
        let serving = pin!(connection.serve(decision));
        metered(serving, &pod.cost, worker, exclude).await;
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
