//! Bytes both ways between two connections: what is not ours to answer.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncWriteExt, Interest, copy};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::timeout;
use tracing::debug;

use super::answer::reset;

/// A peer that has gone without a word is noticed after this long without traffic, twice.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long a relay's connection may take to stand: nobody waits for as long as TCP itself would.
const CONNECT: Duration = Duration::from_secs(30);

/// Copies bytes both ways until both ends are done. An end's half-close is passed on. `grace`: how long
/// the app may go on once the kubelet has ended its side; none: until it is done or one of both is gone.
///
/// # Errors
/// The first error of either connection.
pub(super) async fn pump(
    kubelet: &mut TcpStream,
    app: &mut TcpStream,
    grace: Option<Duration>,
) -> io::Result<()> {
    for stream in [&*kubelet, &*app] {
        stream.set_nodelay(true)?;
        SockRef::from(stream).set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(KEEPALIVE)
                .with_interval(KEEPALIVE),
        )?;
    }
    let (mut kubelet_read, mut kubelet_write) = kubelet.split();
    let (mut app_read, mut app_write) = app.split();
    let mut down = pin!(one_way(&mut app_read, &mut kubelet_write));
    {
        let mut up = pin!(one_way(&mut kubelet_read, &mut app_write));
        tokio::select! {
            done = &mut down => {
                done?;
                return up.await;
            }
            done = &mut up => done?,
        }
    }
    // The kubelet's half is read to its end: should the rest of it go, only the socket says so.
    let down = async {
        tokio::select! {
            done = down => done,
            gone = kubelet_read.ready(Interest::ERROR) => {
                let _ = gone?;
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
    };
    match grace {
        None => down.await,
        Some(grace) => timeout(grace, down).await.unwrap_or(Ok(())),
    }
}

/// Relays the kubelet's connection, which began with `bytes`, to `address` as if we did not exist: from
/// the daemon's own network namespace, through the mesh. What goes wrong there the kubelet sees as a reset.
pub(super) async fn relay(mut kubelet: TcpStream, address: SocketAddr, bytes: &[u8]) {
    let connected = tokio::select! {
        connected = timeout(CONNECT, TcpStream::connect(address)) => {
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        }
        _ = kubelet.ready(Interest::ERROR) => Err(io::ErrorKind::ConnectionReset.into()),
    };
    let mut app = match connected {
        Ok(app) => app,
        Err(error) => {
            debug!(%address, %error, "relay: connecting failed");
            return reset(kubelet);
        }
    };
    let relayed = async {
        app.write_all(bytes).await?;
        pump(&mut kubelet, &mut app, None).await
    };
    if let Err(error) = relayed.await {
        debug!(%address, %error, "relay: broken");
        reset(app);
        reset(kubelet);
    }
}

async fn one_way(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) -> io::Result<()> {
    let _ = copy(from, to).await?;
    to.shutdown().await
}
