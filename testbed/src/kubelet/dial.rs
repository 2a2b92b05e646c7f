//! The kubelet's dialer: SO_LINGER of 1 s set before connect (kubernetes pkg/probe/dialer_others.go).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::Probe;

const LINGER: Duration = Duration::from_secs(1);

/// The source of connections.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dialer {
    /// Source address: pilot-agent uses 127.0.0.6 and ::6, the kubelet none.
    pub(crate) source: Option<IpAddr>,
}

impl Dialer {
    /// Connects to the probe's address at `port`.
    pub(super) async fn connect(self, probe: &Probe, port: u16) -> io::Result<TcpStream> {
        let ip = match (probe.ip, probe.mapped) {
            (IpAddr::V4(v4), true) => IpAddr::V6(v4.to_ipv6_mapped()),
            (ip, _) => ip,
        };
        let address = SocketAddr::new(ip, port);
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(match probe.multipath {
                true => Protocol::MPTCP,
                false => Protocol::TCP,
            }),
        )?;
        socket.set_nonblocking(true)?;
        // Go's net package sets TCP_NODELAY on every TCP connection. Before Linux 5.17 Multipath TCP has neither option, and
        // Go continues without it.
        let set = socket
            .set_linger(Some(LINGER))
            .and_then(|()| socket.set_tcp_nodelay(true));
        if !probe.multipath {
            set?;
        }
        if let Some(source) = self.source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        TcpSocket::from_std_stream(socket.into())
            .connect(address)
            .await
    }
}
