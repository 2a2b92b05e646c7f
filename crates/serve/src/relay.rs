//! Copies bytes both ways between the kubelet and the app, for connections that the handler does not answer itself.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest, copy};
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::answer::reset;
use super::observed::{End, Observed, Observer};

/// Interval of TCP keepalives on an idle connection, which detect a peer that has vanished.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How much an app may send to a spliced probe at full speed: a hundred times what the kubelet reads of a body. Bytes.
const FULL_SPEED_BYTES: u64 = 1 << 20;
/// How much it may send in each [`PACE`] after that, so that no app keeps this thread busy. Bytes.
const PACED_BYTES: u64 = 64 * 1024;
/// The interval for [`PACED_BYTES`].
const PACE: Duration = Duration::from_millis(50);
/// How long a relay may take to connect. TCP's own limit is longer than any client waits.
const CONNECT: Duration = Duration::from_secs(30);

/// Copies bytes both ways until both ends have closed. Passes on half-closes. `grace`: how long the app may continue after
/// the kubelet has closed its side; `None`: until the app closes its side, or either connection fails. `observer` receives
/// the bytes that are read.
///
/// # Errors
/// The first error of either connection.
pub(super) async fn copy_bidirectional(
    kubelet: &mut TcpStream,
    app: &mut TcpStream,
    grace: Option<Duration>,
    observer: Option<&dyn Observer>,
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
    let (app_read, mut app_write) = app.split();
    let mut app_read = Observed {
        stream: app_read,
        from: End::App,
        observer,
    };
    // Only a splice has a grace period. It serves a probe, and the kubelet reads little of the answer.
    let full_speed = match grace {
        Some(_) => FULL_SPEED_BYTES,
        None => u64::MAX,
    };
    let mut down = pin!(one_way(&mut app_read, &mut kubelet_write, full_speed));
    {
        let mut kubelet_read = Observed {
            stream: &mut kubelet_read,
            from: End::Kubelet,
            observer,
        };
        let mut up = pin!(one_way(&mut kubelet_read, &mut app_write, u64::MAX));
        tokio::select! {
            done = &mut down => {
                done?;
                return up.await;
            }
            done = &mut up => done?,
        }
    }
    // The kubelet's side is read to its end: that its connection fails shows only as an error on the socket.
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

/// Relays the kubelet's connection, which began with `bytes`, to `address` from the daemon's own network
/// namespace, so through the mesh, as without this daemon. The kubelet sees any failure there as a reset.
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
            debug!(%address, %error, "cannot connect the relay to the pod");
            return reset(kubelet);
        }
    };
    let relayed = async {
        app.write_all(bytes).await?;
        copy_bidirectional(&mut kubelet, &mut app, None, None).await
    };
    if let Err(error) = relayed.await {
        debug!(%address, %error, "relayed connection failed");
        reset(app);
        reset(kubelet);
    }
}

/// Copies to the end: the first `full_speed` bytes at full speed, the rest at [`PACED_BYTES`] every [`PACE`].
async fn one_way(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut WriteHalf<'_>,
    full_speed: u64,
) -> io::Result<()> {
    let mut copied = copy(&mut from.take(full_speed), to).await?;
    let mut part = full_speed;
    while copied == part {
        sleep(PACE).await;
        part = PACED_BYTES;
        copied = copy(&mut from.take(part), to).await?;
    }
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let address = listener.local_addr().expect("address");
        let (one, two) = tokio::join!(TcpStream::connect(address), listener.accept());
        (one.expect("connected"), two.expect("accepted").0)
    }

    /// Has an app send `length` bytes to a kubelet. Returns how many the kubelet read, and how long it took.
    async fn relayed(length: u64, grace: Option<Duration>) -> (u64, Duration) {
        let (mut kubelet, mut kubelets_end) = pair().await;
        let (mut app, mut apps_end) = pair().await;
        let begun = Instant::now();
        let sending = async move {
            let bytes = vec![b'x'; usize::try_from(length).expect("length")];
            apps_end.write_all(&bytes).await.expect("sent");
        };
        let reading = async move {
            let read = tokio::io::copy(&mut kubelets_end, &mut tokio::io::sink()).await;
            let read = read.expect("read");
            // It sends nothing but its FIN.
            kubelets_end.shutdown().await.expect("ended");
            read
        };
        let (relayed, (), read) = tokio::join!(
            copy_bidirectional(&mut kubelet, &mut app, grace, None),
            sending,
            reading
        );
        relayed.expect("relayed");
        (read, begun.elapsed())
    }

    #[tokio::test]
    async fn a_splice_slows_down_an_app_that_sends_much_and_loses_nothing() {
        let grace = Some(Duration::from_secs(5));
        let (read, took) = relayed(FULL_SPEED_BYTES + 2 * PACED_BYTES, grace).await;
        assert_eq!(read, FULL_SPEED_BYTES + 2 * PACED_BYTES);
        assert!(took >= 2 * PACE, "{took:?}");
        let (read, _) = relayed(FULL_SPEED_BYTES, grace).await;
        assert_eq!(read, FULL_SPEED_BYTES);
        // A relay is not slowed down.
        let (read, took) = relayed(FULL_SPEED_BYTES + 64 * PACED_BYTES, None).await;
        assert_eq!(read, FULL_SPEED_BYTES + 64 * PACED_BYTES);
        assert!(took < 64 * PACE, "{took:?}");
    }
}
