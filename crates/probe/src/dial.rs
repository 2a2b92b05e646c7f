//! Dialling the app: the interface between checks and the pod's network namespace.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, Socket};
use tokio::net::TcpStream;

/// How long the kernel may wait for an acknowledgement of what we sent. The app's kernel is the same one, so
/// this takes no time unless the pod's address is gone. A closed socket would then retransmit its FIN for
/// minutes, and keep the dead namespace alive. The limit does not apply to the handshake: an app whose accept
/// queue is full may take as long as the probe's timeout allows.
const ACK_TIMEOUT: Duration = Duration::from_secs(3);

/// Creates sockets that bypass the mesh and reach the app.
pub trait Dial: Send + Sync + 'static {
    /// A non-blocking TCP socket in the pod's network namespace, with the source and owner that the rules of
    /// the pod's mesh let pass, ready to connect to `to`, which is a [`Dial::destination`].
    ///
    /// # Errors
    /// Those of `setns`, `socket` and `bind`.
    fn socket(&self, to: SocketAddr) -> io::Result<Socket>;

    /// The address at which the app of `to`, an address of the pod, is dialled.
    fn destination(&self, to: SocketAddr) -> SocketAddr {
        to
    }
}

/// Connects to the app of `to` (the pod's own address) from inside the pod.
///
/// # Errors
/// Those of [`Dial::socket`] and `connect`; `ConnectionRefused` for a socket that connected to itself. Has no
/// timeout of its own.
pub async fn dial(dialer: &dyn Dial, to: SocketAddr) -> io::Result<TcpStream> {
    let to = dialer.destination(to);
    let socket = dialer.socket(to)?;
    delay_ack(&socket);
    let connected = connect(&socket, to)?;
    socket.set_tcp_nodelay(true)?;
    // With a positive SO_LINGER, close() blocks this thread, and every other check on it, until the peer has
    // acknowledged our FIN.
    socket.set_linger(None)?;
    let stream = TcpStream::from_std(socket.into())?;
    if !connected {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    SockRef::from(&stream).set_tcp_user_timeout(Some(ACK_TIMEOUT))?;
    // If nothing listens there, and the kernel gave the socket that same port, TCP connects it to itself.
    if stream.local_addr()? == to {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

/// Makes the handshake's last ACK leave with the first bytes that we send: without TCP_QUICKACK the kernel's
/// `tcp_rcv_synsent_state_process` delays that ACK, for 200 ms at most. So the app wakes up once, for a
/// connection that already has its request. If this fails, it wakes up twice.
fn delay_ack(socket: &Socket) {
    let _ = socket.set_tcp_quickack(false);
}

/// Begins to connect. Returns whether the connection is already established: to a pod's own address the whole
/// handshake happens within `connect()`, although it returns EINPROGRESS. This saves a wait in the reactor.
fn connect(socket: &Socket, to: SocketAddr) -> io::Result<bool> {
    match socket.connect(&to.into()) {
        Ok(()) => Ok(true),
        // The socket has a peer only once the handshake has succeeded.
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
            Ok(socket.peer_addr().is_ok())
        }
        Err(error) => Err(error),
    }
}

/// Sends as much of `bytes` as the kernel accepts without blocking, and returns the rest. A stream that was
/// just dialled usually accepts a whole request head, without the wait in the reactor that the runtime's own
/// write begins with. An error is ignored here: the next write returns it.
pub fn send_at_once<'a>(stream: &TcpStream, bytes: &'a [u8]) -> &'a [u8] {
    let sent = SockRef::from(stream).send(bytes).unwrap_or_default();
    bytes.get(sent..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Type};
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// Creates sockets with the SO_LINGER that the kubelet sets.
    struct Lingering;

    impl Dial for Lingering {
        fn socket(&self, _to: SocketAddr) -> io::Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
            socket.set_linger(Some(Duration::from_secs(1)))?;
            Ok(socket)
        }
    }

    #[tokio::test]
    async fn closing_a_dialled_connection_does_not_block() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let stream = dial(&Lingering, address).await.expect("a connection");
        assert_eq!(SockRef::from(&stream).linger().expect("option"), None);
    }

    #[tokio::test]
    async fn a_closed_port_refuses() {
        let silent = TcpSocket::new_v4().expect("socket");
        silent
            .bind("127.0.0.1:0".parse().expect("address"))
            .expect("bind");
        let address = silent.local_addr().expect("address");
        let error = dial(&Lingering, address).await.expect_err("a refusal");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn bytes_that_cannot_be_sent_at_once_are_returned() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let stream = dial(&Lingering, address).await.expect("a connection");
        let bytes = vec![0; 64 << 20];
        let left = send_at_once(&stream, &bytes).len();
        assert!(left > 0 && left < bytes.len(), "{left} left");
        assert_eq!(send_at_once(&stream, &[]).len(), 0);
    }

    /// Binds the socket to the address that it dials, which the kernel may also choose if the app's port is in
    /// the ephemeral range.
    struct Mirror;

    impl Dial for Mirror {
        fn socket(&self, to: SocketAddr) -> io::Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
            socket.bind(&to.into())?;
            Ok(socket)
        }
    }

    #[tokio::test]
    async fn a_socket_that_connects_to_itself_counts_as_refused() {
        // No other test uses this address, so none takes the port before the dial does.
        let free = TcpListener::bind("127.0.0.2:0").await.expect("bind");
        let address = free.local_addr().expect("address");
        drop(free);
        let error = dial(&Mirror, address).await.expect_err("a refusal");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
