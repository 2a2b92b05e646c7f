//! A client on the node with a chosen source port: used as the kubelet, with a manually written exemption, or as
//! another process that gets the same port later.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;
use kernel::maps::ConnectingMap;
use socket2::{Domain, Socket, Type};

use crate::pace;
use crate::run::Run;

/// Timeout of a connect and of an answer.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    source: SocketAddr,
    pub to: SocketAddr,
    /// Options in the IPv4 header.
    pub ip_options: bool,
    /// `SO_MARK`.
    pub mark: u32,
    pub patience: Duration,
}

impl Client {
    /// A client on the node with source port `source`, for `port` of the pod at `ip`.
    pub fn new(run: &Run, ip: IpAddr, port: u16, source: u16) -> Self {
        let (v4, v6) = run.node_ips();
        let node = match ip {
            IpAddr::V4(_) => IpAddr::V4(v4),
            IpAddr::V6(_) => IpAddr::V6(v6),
        };
        Self {
            source: SocketAddr::new(node, source),
            to: SocketAddr::new(ip, port),
            ip_options: false,
            mark: 0,
            patience: PATIENCE,
        }
    }

    /// Connects as any process.
    pub fn connect(self) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if self.ip_options {
            set_ip_options(&socket)?;
        }
        if self.mark != 0 {
            socket.set_mark(self.mark)?;
        }
        socket.bind(&self.source.into())?;
        socket.connect_timeout(&self.to.into(), pace::stretch(self.patience))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(pace::stretch(PATIENCE)))?;
        Ok(stream)
    }

    /// Connects as the kubelet does: with an exemption entry during the connect.
    pub fn connect_exempt(self, connecting: &ConnectingMap) -> Result<io::Result<TcpStream>> {
        connecting.record(self.source, self.to)?;
        let connected = self.connect();
        let _arrived = connecting.forget(self.source, self.to)?;
        Ok(connected)
    }
}

/// Four times "no operation".
fn set_ip_options(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let options = [1_u8; 4];
    // SAFETY: the socket is open, and the pointer and length describe the value.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            options.as_ptr().cast(),
            4,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Requests the app's health in plaintext; returns the answer, which is empty if the connection is reset or closed.
pub(super) fn answer(mut stream: TcpStream) -> String {
    let request = b"GET /healthy HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n";
    let mut text = Vec::new();
    if stream.write_all(request).is_ok() {
        let _ended_in_whatever_way = stream.read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Whether `answer` is the app's answer.
pub(super) fn is_the_apps(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200")
}
