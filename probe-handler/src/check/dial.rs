//! The seam between checks and the pod's network namespace.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

/// Makes sockets from which the app can be reached past the mesh.
pub trait Dial: Send + Sync + 'static {
    /// A non-blocking TCP socket in the pod's network namespace, its source and owner as the pod's
    /// mesh wants them, SO_LINGER set, ready to connect to `to`.
    ///
    /// # Errors
    /// Those of `setns`, `socket` and `bind`. `ENOENT`-like errors say that the pod is gone.
    fn socket(&self, to: SocketAddr) -> io::Result<TcpSocket>;
}

/// Connects to `to` (the pod's own address) from inside the pod.
///
/// # Errors
/// Those of [`Dial::socket`] and `connect`; `ConnectionRefused` for a socket that met itself. Has no timeout
/// of its own.
pub async fn dial(dialer: &dyn Dial, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = dialer.socket(to)?.connect(to).await?;
    // With nobody listening there, TCP connects a socket to itself if it was given that very port.
    if stream.local_addr()? == to {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    // With a positive SO_LINGER close() blocks until the app's kernel has acknowledged our FIN, and with
    // it every other check on this thread.
    SockRef::from(&stream).set_linger(None)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;

    /// As the real one, with the kubelet's own SO_LINGER.
    struct Lingering;

    impl Dial for Lingering {
        fn socket(&self, _to: SocketAddr) -> io::Result<TcpSocket> {
            let socket = TcpSocket::new_v4()?;
            SockRef::from(&socket).set_linger(Some(Duration::from_secs(1)))?;
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

    /// Dials from the very address that it is to dial, as the kernel may choose where the app's port is in
    /// the ephemeral range.
    struct Mirror;

    impl Dial for Mirror {
        fn socket(&self, to: SocketAddr) -> io::Result<TcpSocket> {
            let socket = TcpSocket::new_v4()?;
            socket.bind(to)?;
            Ok(socket)
        }
    }

    #[tokio::test]
    async fn a_socket_that_connects_to_itself_has_met_no_app() {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = free.local_addr().expect("address");
        drop(free);
        let error = dial(&Mirror, address).await.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
