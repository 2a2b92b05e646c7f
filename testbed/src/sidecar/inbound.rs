//! Inbound connections: forwards the content of mutual TLS of the mesh in plaintext, and refuses all else as the mesh's
//! proxy does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::server::Acceptor;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::process::{Counters, count};
use super::{Refusal, Traffic};
use crate::mesh::SERVER_NAME;

/// First byte of a TLS hello.
const TLS_HANDSHAKE: u8 = 0x16;

/// The proxy's inbound side.
#[derive(Clone)]
pub(super) struct Inbound {
    pub(super) acceptor: TlsAcceptor,
    pub(super) mark: Option<u32>,
    pub(super) passthrough_source: bool,
    pub(super) transparent: bool,
    pub(super) refusal: Refusal,
    pub(super) traffic: Traffic,
    pub(super) counters: Arc<Counters>,
}

impl Inbound {
    pub(super) async fn serve(self, stream: TcpStream) -> Result<()> {
        count(&self.counters.inbound);
        let destination = self.original_destination(&stream)?;
        let client = stream.peer_addr()?;
        let mut first = [0];
        // Like Envoy, decides by the first bytes; a client that sends nothing keeps waiting.
        if stream.peek(&mut first).await? == 0 {
            return Ok(());
        }
        if first[0] != TLS_HANDSHAKE && self.traffic.permissive {
            return self.forward(stream, client, destination).await;
        }
        if first[0] != TLS_HANDSHAKE {
            let number = count(&self.counters.refused);
            return self.refusal.end(stream, number).await;
        }
        let stream = match self.handshake(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                count(&self.counters.refused);
                bail!("no mutual TLS: {error}");
            }
        };
        self.forward(stream, client, destination).await
    }

    /// Accepts mutual TLS. Linkerd's proxy treats TLS for another name as any other bytes, and closes the connection; the
    /// others send an alert.
    async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        if self.refusal == Refusal::Deny && hello.client_hello().server_name() != Some(SERVER_NAME)
        {
            bail!("TLS for another name");
        }
        Ok(hello
            .into_stream(Arc::clone(self.acceptor.config()))
            .await?)
    }

    /// Copies bytes between a client and the app of `destination`.
    async fn forward(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Result<()> {
        let app = SocketAddr::new(self.traffic.app(destination.ip()), destination.port());
        let mut app = self.connect(client.ip(), app).await?;
        count(&self.counters.forwarded);
        let _bytes = copy_bidirectional(&mut stream, &mut app).await?;
        stream.shutdown().await.context("closing")
    }

    fn original_destination(&self, stream: &TcpStream) -> Result<SocketAddr> {
        let local = stream.local_addr()?;
        if self.transparent {
            return Ok(local);
        }
        let socket = SockRef::from(stream);
        let original = match local {
            SocketAddr::V4(_) => socket.original_dst_v4(),
            SocketAddr::V6(_) => socket.original_dst_v6(),
        };
        original?
            .as_socket()
            .context("the original destination is not an address")
    }

    /// Dials the app as the mesh's proxy does for a client at `client`.
    async fn connect(&self, client: IpAddr, destination: SocketAddr) -> Result<TcpStream> {
        let domain = Domain::for_address(destination);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        if self.transparent {
            // The kernel accepts the IPv4 option on IPv6 sockets too.
            socket.set_ip_transparent_v4(true)?;
            socket.bind(&SocketAddr::new(client, 0).into())?;
        }
        if self.passthrough_source {
            let source: IpAddr = match destination {
                SocketAddr::V4(_) => Ipv4Addr::new(127, 0, 0, 6).into(),
                SocketAddr::V6(_) => Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into(),
            };
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        Ok(TcpSocket::from_std_stream(socket.into())
            .connect(destination)
            .await?)
    }
}
