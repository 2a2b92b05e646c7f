//! How a connection with the kubelet ends.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use http::StatusCode;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long the kubelet has to hang up once it has our answer.
const LINGER: Duration = Duration::from_secs(1);
/// How long an app has to close once it has answered, before we do.
const CLOSING: Duration = Duration::from_millis(100);
/// How many bytes it may still send meanwhile.
const LINGER_BYTES: usize = 16 * 1024;

/// Answers with `status` and nothing else; where that is not the `whole` answer, a body is announced that does not
/// come: an error to the kubelet, as the app's own was.
///
/// # Errors
/// The kubelet has gone.
pub(super) async fn send(kubelet: &mut TcpStream, status: u16, whole: bool) -> io::Result<()> {
    let head = head(status, whole);
    // The answer and our end of the stream leave in one segment.
    let flags = libc::MSG_MORE | libc::MSG_NOSIGNAL;
    let sent = SockRef::from(&*kubelet)
        .send_with_flags(head.as_bytes(), flags)
        .unwrap_or_default();
    kubelet.write_all(&head.as_bytes()[sent..]).await?;
    kubelet.shutdown().await
}

/// Waits for the kubelet to hang up once it was answered: closing with unread bytes would reset the
/// connection and could take the answer away from it.
pub(super) async fn part(mut kubelet: TcpStream) {
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

/// Closes a connection that an app has answered on. An app that closes first, as it was asked to (`Connection: close`),
/// would leave its end in TIME_WAIT for a minute, in the pod: it hears nothing any more, so it is reset.
pub(super) async fn let_go(app: Option<TcpStream>) {
    let Some(mut app) = app else {
        return;
    };
    // One that has more to say, or goes on, is closed as usual.
    if let Ok(Ok(0)) = timeout(CLOSING, app.read(&mut [0; 512])).await {
        reset_on_drop(&app);
    }
}

/// All that is sent.
fn head(status: u16, whole: bool) -> String {
    let phrase = StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default();
    // RFC 9110, 8.6: no Content-Length with 1xx and 204; with 304 it would tell another length.
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

/// Has the connection be reset when it is dropped.
pub(super) fn reset_on_drop(stream: &TcpStream) {
    // Where this fails the socket is gone already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Whether the connection was reset, or both ends have closed it: what was read from it before is nobody's wish any more.
pub(super) fn is_gone(kubelet: &TcpStream) -> bool {
    // `tcpi_state` is the first byte of struct tcp_info; of the states only that which it has then matters.
    const TCP_CLOSE: u8 = 7;
    let mut state = 0_u8;
    let mut length = 1;
    // SAFETY: an open socket; the kernel writes as many bytes as the length says, which is one.
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

/// Returns when the kubelet has hung up. Whatever else it sends while it waits for an answer is dropped.
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
    fn an_answer_is_a_status_and_no_body() {
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
