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
/// Those of [`Dial::socket`] and `connect`. Has no timeout of its own.
pub async fn dial(dialer: &dyn Dial, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = dialer.socket(to)?.connect(to).await?;
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
}
