//! Answering, draining and closing the kubelet's connection.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use http::StatusCode;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long the kubelet has to close its connection after our answer.
const LINGER: Duration = Duration::from_secs(1);
/// How long an app has to close its connection after its answer, before we close it.
const CLOSING: Duration = Duration::from_millis(100);
/// How many bytes the kubelet may send in that time.
const LINGER_BYTES: usize = 16 * 1024;

/// Answers with `status` and no body. If the app's answer was not `whole`, announces a body that does not follow, so that
/// the kubelet sees an incomplete body, as it would from the app.
///
/// # Errors
/// The kubelet has closed its connection.
pub(super) async fn send(kubelet: &mut TcpStream, status: u16, whole: bool) -> io::Result<()> {
    let head = head(status, whole);
    // MSG_MORE sends the answer and our FIN in one segment.
    let flags = libc::MSG_MORE | libc::MSG_NOSIGNAL;
    let sent = SockRef::from(&*kubelet)
        .send_with_flags(head.as_bytes(), flags)
        .unwrap_or_default();
    kubelet.write_all(&head.as_bytes()[sent..]).await?;
    kubelet.shutdown().await
}

/// Waits for the kubelet to close its connection after the answer: closing ours with unread bytes would reset the
/// connection, and the kubelet could lose the answer.
pub(super) async fn drain(mut kubelet: TcpStream) {
    let drained = async {
        let mut scratch = [0; 512];
        let mut left = LINGER_BYTES;
        while let Ok(length @ 1..) = kubelet.read(&mut scratch).await {
            left = left.saturating_sub(length);
            if left == 0 {
                break;
            }
        }
    };
    let _ = timeout(LINGER, drained).await;
}

/// Closes the connection to an app that has answered. An app that closes first, as `Connection: close` requests, would
/// leave its socket in TIME_WAIT for a minute, in the pod. Nothing more is sent on it, so a reset is safe and avoids that.
pub(super) async fn close_app(app: Option<TcpStream>) {
    let Some(mut app) = app else {
        return;
    };
    // If the app sends more, or does not close, close our end as usual.
    if let Ok(Ok(0)) = timeout(CLOSING, app.read(&mut [0; 512])).await {
        reset_on_drop(&app);
    }
}

/// The whole answer.
fn head(status: u16, whole: bool) -> String {
    let phrase = StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default();
    // RFC 9110, 8.6: no Content-Length with 1xx and 204; with 304 it would be the length of another response.
    let length = match status {
        100..200 | 204 | 304 => "",
        _ if whole => "Content-Length: 0\r\n",
        _ => "Content-Length: 1\r\n",
    };
    format!("HTTP/1.1 {status} {phrase}\r\n{length}Connection: close\r\n\r\n")
}

/// Resets the connection: the kubelet sees a transport error.
pub(super) fn reset(stream: TcpStream) {
    reset_on_drop(&stream);
    drop(stream);
}

/// Makes dropping the stream reset its connection.
pub(super) fn reset_on_drop(stream: &TcpStream) {
    // This fails only if the socket is already gone.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Whether the connection was reset, or both ends have closed it: then the request read from it before needs no answer.
pub(super) fn is_gone(kubelet: &TcpStream) -> bool {
    // `tcpi_state` is the first byte of struct tcp_info. After a reset, or once both ends have closed, it is TCP_CLOSE.
    const TCP_CLOSE: u8 = 7;
    let mut state = 0_u8;
    let mut length = 1;
    // SAFETY: an open socket; the kernel writes at most `length` bytes, which is one.
    let result = unsafe {
        libc::getsockopt(
            kubelet.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut length,
        )
    };
    result != 0 || state == TCP_CLOSE
}

/// Returns when the kubelet has closed its connection. Discards what it sends before that.
pub(super) async fn hung_up(kubelet: &TcpStream) {
    let mut scratch = [0; 512];
    while kubelet.readable().await.is_ok() {
        match kubelet.try_read(&mut scratch) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_no_body() {
        for (status, expect) in [
            (
                200,
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            ),
            (204, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
            (
                304,
                "HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n",
            ),
            (
                599,
                "HTTP/1.1 599 \r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            ),
        ] {
            assert_eq!(head(status, true), expect);
        }
    }
}
