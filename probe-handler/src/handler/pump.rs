//! Bytes both ways between two connections: what is not ours to answer.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncWriteExt, copy};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::timeout;
use tracing::debug;

use super::answer::reset;

/// A peer that has gone without a word is noticed after this long without traffic, twice.
const KEEPALIVE: Duration = Duration::from_secs(15);

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
    let down = one_way(&mut app_read, &mut kubelet_write);
    tokio::pin!(down);
    let up = one_way(&mut kubelet_read, &mut app_write);
    tokio::pin!(up);
    let down_is_done = tokio::select! {
        done = &mut down => done.map(|()| true)?,
        done = &mut up => done.map(|()| false)?,
    };
    match grace {
        _ if down_is_done => up.await,
        None => down.await,
        Some(grace) => timeout(grace, down).await.unwrap_or(Ok(())),
    }
}

/// Relays the kubelet's connection, which began with `bytes`, to `address` as if we did not exist: from
/// the daemon's own network namespace, through the mesh. What goes wrong there the kubelet sees as a reset.
pub(super) async fn relay(mut kubelet: TcpStream, address: SocketAddr, bytes: &[u8]) {
    let mut app = match TcpStream::connect(address).await {
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
