//! The seam between checks and the pod's network namespace.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, Socket};
use tokio::net::TcpStream;

/// How long the kernel may wait for the app's kernel to acknowledge what we sent. Both are the same kernel,
/// so it takes no time, unless the pod's address is gone: a closed socket would then go on trying to say so
/// for minutes, and keep the dead namespace alive meanwhile. Of the handshake it is not asked: an app whose
/// queue is full may take as long as the probe's timeout allows.
const UNACKNOWLEDGED: Duration = Duration::from_secs(3);

/// Makes sockets from which the app can be reached past the mesh.
pub trait Dial: Send + Sync + 'static {
    /// A non-blocking TCP socket in the pod's network namespace, its source and owner as the pod's
    /// mesh wants them, ready to connect to `to`.
    ///
    /// # Errors
    /// Those of `setns`, `socket` and `bind`.
    fn socket(&self, to: SocketAddr) -> io::Result<Socket>;
}

/// Connects to `to` (the pod's own address) from inside the pod.
///
/// # Errors
/// Those of [`Dial::socket`] and `connect`; `ConnectionRefused` for a socket that met itself. Has no timeout
/// of its own.
pub async fn dial(dialer: &dyn Dial, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = dialer.socket(to)?;
    speak_first(&socket);
    let connected = connect(&socket, to)?;
    socket.set_tcp_nodelay(true)?;
    // With a positive SO_LINGER close() blocks until the app's kernel has acknowledged our FIN, and with
    // it every other check on this thread.
    socket.set_linger(None)?;
    let stream = TcpStream::from_std(socket.into())?;
    if !connected {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    // With nobody listening there, TCP connects a socket to itself if it was given that very port.
    if stream.local_addr()? == to {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

/// The last step of the handshake leaves with what we send first (the kernel's `tcp_rcv_synsent_state_process`
/// holds an acknowledgement back while quick ones are off, 200 ms at most): the app is woken once, for a
/// connection that has its request. Where this fails, it is woken twice.
fn speak_first(socket: &Socket) {
    let _ = socket.set_tcp_quickack(false);
}

/// Begins to connect; whether the connection stands already. To a pod's own address the whole handshake
/// happens within `connect()`, although it says EINPROGRESS: asking saves a round through the reactor.
fn connect(socket: &Socket, to: SocketAddr) -> io::Result<bool> {
    match socket.connect(&to.into()) {
        Ok(()) => Ok(true),
        // There is no peer before the handshake is over, nor after it has failed.
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
            Ok(socket.peer_addr().is_ok())
        }
        Err(error) => Err(error),
    }
}

/// Sends what the kernel takes of `bytes` without waiting, and gives the rest. A stream that was just
/// dialled takes a request's head as a rule; the runtime would first ask the reactor whether it does. An
/// error is left for the next attempt to meet.
pub fn send_at_once<'a>(stream: &TcpStream, bytes: &'a [u8]) -> &'a [u8] {
    let sent = SockRef::from(stream).send(bytes).unwrap_or_default();
    bytes.get(sent..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Type};
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// As the real one, with the kubelet's own SO_LINGER.
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
        let error = dial(&Lingering, address).await.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn what_cannot_be_sent_at_once_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let stream = dial(&Lingering, address).await.expect("a connection");
        let bytes = vec![0; 64 << 20];
        let left = send_at_once(&stream, &bytes).len();
        assert!(left > 0 && left < bytes.len(), "{left} left");
        assert_eq!(send_at_once(&stream, &[]).len(), 0);
    }

    /// Dials from the very address that it is to dial, as the kernel may choose where the app's port is in
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
    async fn a_socket_that_connects_to_itself_has_met_no_app() {
        // On an address of its own: no other test takes the port before the dial does.
        let free = TcpListener::bind("127.0.0.2:0").await.expect("bind");
        let address = free.local_addr().expect("address");
        drop(free);
        let error = dial(&Mirror, address).await.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
