//! The servers of the webhook: admission over TLS, and health and metrics without TLS on a separate address.
//!
//! They speak HTTP/1.1 and HTTP/2. Everything is bounded: connections, the time for a handshake, a head and a body,
//! the size of a body, of all bodies together and of all answers. A client that exceeds a bound affects only itself.

mod answers;
mod body;
mod budget;
mod connection;
mod connections;
mod limits;
mod routes;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::ResolvesServerCert;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use support::listen::{self, Share};

use answers::Answers;
use connections::Connections;
pub use limits::Limits;
use routes::Routes;
pub use routes::{Admission, Observation};

/// Pause between attempts to accept while the process has no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
const BACKLOG: i32 = 1024;

/// The phase of a server's shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves.
    Serving,
    /// Existing connections are closed once they are idle; new ones are still served, because the cluster needs
    /// a moment to route them elsewhere.
    Leaving,
    /// No new connections are accepted; existing ones end after the requests in progress.
    Ending,
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
}

/// What all connections of a server have in common.
struct Shared {
    routes: Routes,
    limits: Limits,
    connections: Arc<Connections>,
    answers: Arc<Answers>,
}

impl Server {
    /// An admission server that listens on `address`, with TLS 1.2 or 1.3. `resolver` provides the certificate for
    /// each handshake, regardless of the server name that the client sends.
    ///
    /// # Errors
    /// The address is in use by another process, or not permitted.
    pub fn admission(
        address: SocketAddr,
        resolver: Arc<dyn ResolvesServerCert>,
        admission: Admission,
        limits: Limits,
    ) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let tls = TlsAcceptor::from(Arc::new(config));
        Self::bind(address, Some(tls), Routes::Admission(admission), limits)
    }

    /// A server of health and metrics that listens on `address`.
    ///
    /// # Errors
    /// Those of [`Self::admission`].
    pub fn observation(address: SocketAddr, observation: Observation) -> anyhow::Result<Self> {
        let limits = Limits {
            connections: 64,
            idle: Duration::from_secs(60),
            ..Limits::default()
        };
        Self::bind(address, None, Routes::Observation(observation), limits)
    }

    fn bind(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        routes: Routes,
        limits: Limits,
    ) -> anyhow::Result<Self> {
        let (listener, address) = bound(address)
            .map_err(|error| anyhow::anyhow!("cannot listen on {address}: {error}"))?;
        Ok(Self {
            listener,
            address,
            tls,
            shared: Arc::new(Shared {
                routes,
                connections: Connections::new(limits.connections),
                answers: Answers::new(limits.answers),
                limits,
            }),
        })
    }

    /// The address on which it listens, with the actual port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns a function that returns the current number of connections.
    pub fn connections(&self) -> impl Fn() -> usize + Send + Sync + 'static {
        let connections = Arc::clone(&self.shared.connections);
        move || connections.count()
    }

    /// Serves until `phase` is [`Phase::Ending`] and every request in progress is answered.
    pub async fn serve(self, mut phase: watch::Receiver<Phase>) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = reached(&mut phase, Phase::Ending) => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    // Answers are small and the client waits for them.
                    let _ = stream.set_nodelay(true);
                    let _ = connections.spawn(connection::serve(
                        Arc::clone(&self.shared),
                        self.tls.clone(),
                        stream,
                        phase.clone(),
                    ));
                }
                Err(error) => {
                    tracing::warn!(%error, "the webhook cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
        drop(self.listener);
        while connections.join_next().await.is_some() {}
    }
}

/// Waits until `phase` is at least `wanted`.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    // A dropped sender sends no more phases: treat it as the end.
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

fn bound(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::from_std(listen::tcp(address, Share::Alone, BACKLOG)?)?;
    let real = listener.local_addr()?;
    Ok((listener, real))
}

#[cfg(test)]
mod tests;
