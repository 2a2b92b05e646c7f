//! HTTP/2 to an app: a connection, and one GET over it.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Uri, Version, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::http1::ResponseHead;
use super::limited::Limited;
use super::request::Request;
use super::verdict::Reason;
use super::{BODY_LATE, BODY_LIMIT, Finding, HEAD_LIMIT, WIRE_LIMIT, in_time};

/// Flow control window (RFC 9113, 6.9.2). Bytes.
const WINDOW: u32 = 65_535;

/// The spawned tasks of one connection.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
{
    fn execute(&self, future: F) {
        let _ = self.0.lock().spawn(async move {
            let _ = future.await;
        });
    }
}

/// Aborts a connection's tasks when dropped, so that a dropped check leaves nothing behind.
pub(super) struct Connection(Tasks);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.0.lock().abort_all();
    }
}

/// Begins HTTP/2 on `stream`.
///
/// # Errors
/// The app does not speak HTTP/2, or closed the connection.
pub(super) async fn connect<S, B>(stream: S) -> hyper::Result<(SendRequest<B>, Connection)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let tasks = Tasks::default();
    let guard = Connection(tasks.clone());
    let (sender, connection) = Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_LIMIT as u32)
        // The window bounds what an app may make this process buffer: no more than the protocol's minimum.
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(TokioIo::new(Limited::new(stream, WIRE_LIMIT)))
        .await?;
    tasks.execute(connection);
    Ok((sender, guard))
}

/// Makes `request`, to `authority` if it has no Host, and reads as much of the answer as the kubelet reads,
/// until `deadline`. For a lifecycle hook (`hook`) the body may fail.
pub(super) async fn get<S>(
    stream: S,
    request: &Request<'_>,
    authority: &str,
    hook: bool,
    deadline: Option<Instant>,
) -> Result<ResponseHead, Finding>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = translate(request, authority)
        .map_err(|error| Finding::without_answer(Reason::BadResponse, error.to_string()))?;
    let (mut sender, _connection) = connect(stream).await.map_err(failed)?;
    let response = sender.send_request(request).await.map_err(failed)?;
    let (parts, mut body) = response.into_parts();
    let head = ResponseHead {
        status: parts.status.as_u16(),
        location: parts
            .headers
            .get(header::LOCATION)
            .map(|value| value.as_bytes().to_vec())
            .filter(|value| !value.is_empty()),
    };
    // 204 and 304 have no body, whatever follows in the stream.
    if head.leads_on() || matches!(head.status, 204 | 304) {
        return Ok(head);
    }
    match in_time(deadline, read(&mut body)).await {
        Some(Ok(())) => Ok(head),
        Some(Err(_)) if hook => Ok(head),
        Some(Err(error)) => Err(Finding::body_incomplete(head.status, failed(error).detail)),
        None => Err(Finding::body_incomplete(head.status, BODY_LATE)),
    }
}

/// Reads as much of `body` as the kubelet reads.
async fn read(body: &mut Incoming) -> hyper::Result<()> {
    let mut left = BODY_LIMIT;
    while let Some(frame) = body.frame().await {
        let length = frame?.data_ref().map_or(0, Bytes::len);
        if length >= left {
            break;
        }
        left -= length;
    }
    Ok(())
}

/// Translates the request to HTTP/2: its Host becomes the authority.
fn translate(
    request: &Request<'_>,
    authority: &str,
) -> Result<http::Request<Empty<Bytes>>, http::Error> {
    let host = request.header("host").unwrap_or(authority.as_bytes());
    let uri = Uri::builder()
        .scheme("https")
        .authority(host)
        .path_and_query(request.target)
        .build()?;
    let mut translated = http::Request::builder()
        .method(Method::GET)
        .version(Version::HTTP_2)
        .uri(uri)
        .body(Empty::new())?;
    for (name, value) in request.in_http2() {
        if !name.eq_ignore_ascii_case("host") {
            let name = HeaderName::from_bytes(name.as_bytes())?;
            let _ = translated
                .headers_mut()
                .append(name, HeaderValue::from_bytes(value)?);
        }
    }
    Ok(translated)
}

/// The finding for an HTTP/2 failure.
pub(super) fn failed(error: hyper::Error) -> Finding {
    let cause = std::error::Error::source(&error);
    let h2 = cause.and_then(|cause| cause.downcast_ref::<h2::Error>());
    // Use h2's description of the reason: the app's own text in GOAWAY must not reach the log.
    let detail = match (h2.and_then(h2::Error::reason), cause) {
        (Some(reason), _) => format!("{error}: {}", reason.description()),
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    };
    // If h2 itself resets the stream, the answer violates the protocol or our limits.
    let closed = error.is_closed()
        || error.is_canceled()
        || error.is_incomplete_message()
        || h2.is_some_and(|error| error.is_io() || error.is_remote());
    let reason = if closed {
        Reason::ConnectionClosed
    } else {
        Reason::BadResponse
    };
    Finding::without_answer(reason, detail)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::timeout;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: app\r\n\r\n";

    #[tokio::test]
    async fn the_debug_data_of_goaway_is_not_in_the_detail() {
        const SECRET: &[u8] = b"card 4111";
        let (ours, mut apps) = duplex(64 * 1024);
        let app = async {
            let mut scratch = [0; 1024];
            let _ = apps.read(&mut scratch).await.expect("a preface");
            // RFC 9113: SETTINGS (6.5), then GOAWAY (6.8) with ENHANCE_YOUR_CALM and debug data.
            let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
            frames.extend([0, 0, 8 + SECRET.len() as u8, 7, 0, 0, 0, 0, 0]);
            frames.extend([0, 0, 0, 0, 0, 0, 0, 0xb]);
            frames.extend(SECRET);
            apps.write_all(&frames).await.expect("write");
            apps
        };
        let request = Request::parse(REQUEST).expect("valid").expect("whole");
        let (answer, _apps) = tokio::join!(get(ours, &request, "app", false, None), app);
        let finding = answer.expect_err("no answer");
        assert_eq!(finding.reason, Reason::ConnectionClosed, "{finding:?}");
        assert!(!finding.detail.contains("4111"), "{finding:?}");
    }

    #[tokio::test]
    async fn an_app_that_sends_frames_without_end_is_cut_off() {
        let (ours, mut apps) = duplex(64 * 1024);
        let app = async move {
            let mut sent = 0;
            // SETTINGS, then unsolicited PING acknowledgements (RFC 9113, 6.7).
            let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
            while apps.write_all(&frames).await.is_ok() {
                sent += frames.len();
                frames = [[0, 0, 8, 6, 1, 0, 0, 0, 0].as_slice(), &[0; 8]].concat();
            }
            sent
        };
        let request = Request::parse(REQUEST).expect("valid").expect("whole");
        let (answer, sent) = tokio::join!(get(ours, &request, "app", false, None), app);
        let finding = answer.expect_err("no answer");
        assert!(
            matches!(
                finding.reason,
                Reason::ConnectionClosed | Reason::BadResponse
            ),
            "{finding:?}"
        );
        assert!(
            finding.detail.contains("more data than a check reads"),
            "{finding:?}"
        );
        assert!(sent < WIRE_LIMIT + 256 * 1024, "{sent} bytes");
    }

    /// Sends the head of the answer to the app's first request. Returns the stream for its body.
    async fn answering(apps: DuplexStream) -> h2::SendStream<Bytes> {
        let mut connection = h2::server::handshake(apps).await.expect("a handshake");
        let (_, mut respond) = connection
            .accept()
            .await
            .expect("a request")
            .expect("valid");
        drop(tokio::spawn(async move {
            while connection.accept().await.is_some() {}
        }));
        let head = http::Response::new(());
        respond.send_response(head, false).expect("a head")
    }

    #[tokio::test(start_paused = true)]
    async fn a_hook_ends_with_the_body_and_not_before() {
        let (ours, apps) = duplex(64 * 1024);
        let app = tokio::spawn(answering(apps));
        let request = Request::parse(REQUEST).expect("valid").expect("whole");
        let mut answer = pin!(get(ours, &request, "app", true, None));
        // The paused clock advances once all tasks are idle.
        let early = timeout(Duration::from_secs(1), answer.as_mut()).await;
        assert!(early.is_err(), "it waits for the body");
        let mut body = app.await.expect("it answers");
        body.send_data(Bytes::new(), true).expect("the end");
        assert_eq!(answer.await.expect("an answer").status, 200);
    }

    #[tokio::test]
    async fn a_body_without_end_is_read_as_far_as_the_kubelet_reads() {
        let (ours, apps) = duplex(64 * 1024);
        let app = tokio::spawn(async move {
            let mut body = answering(apps).await;
            loop {
                body.reserve_capacity(1024);
                let Some(Ok(room)) = poll_fn(|cx| body.poll_capacity(cx)).await else {
                    return;
                };
                let _ = body.send_data(vec![b'x'; room.min(1024)].into(), false);
            }
        });
        let request = Request::parse(REQUEST).expect("valid").expect("whole");
        let head = get(ours, &request, "app", false, None)
            .await
            .expect("an answer");
        assert_eq!(head.status, 200);
        app.await.expect("its stream has ended");
    }
}
