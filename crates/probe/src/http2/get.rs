//! One GET over HTTP/2.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::hpack::Field;
use super::{Connection, Error, Part, value, values};
use crate::http1::ResponseHead;
use crate::request::Request;
use crate::{BODY_LATE, BODY_LIMIT, Finding, in_time};

/// Makes `request`, to `authority` if it has no Host, and reads as much of the answer as the kubelet reads,
/// until `deadline`. For a lifecycle hook (`hook`) the body may fail.
///
/// Source: `handleResponse`, `processData` and `transportResponseBody.Read` in net/http's HTTP/2 transport.
pub(crate) async fn get<S>(
    stream: S,
    request: &Request<'_>,
    authority: &str,
    hook: bool,
    deadline: Option<Instant>,
) -> Result<ResponseHead, Finding>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = Connection::open(stream).await;
    connection
        .request(&translate(request, authority), Vec::new())
        .await;
    let answer = head(&mut connection).await.map_err(Error::into_finding)?;
    let head = answer.head;
    if head.leads_on() || hook && head.has_long_body {
        return Ok(head);
    }
    let body = match answer.ended {
        true if answer.length.unwrap_or_default() > 0 => Err(SHORT),
        true => return Ok(head),
        false => match in_time(deadline, body(&mut connection, answer.length)).await {
            Some(read) => read,
            None => return Err(Finding::body_incomplete(head.status, BODY_LATE)),
        },
    };
    match body {
        Err(error) if !hook => Err(Finding::body_incomplete(head.status, error.to_string())),
        _ => Ok(head),
    }
}

const PUSH: Error = Error::Protocol("a push");
const SHORT: Error = Error::Protocol("the body is shorter than its Content-Length");

struct Answer {
    head: ResponseHead,
    /// The length of the body, if it is announced. Bytes.
    length: Option<usize>,
    /// Whether there is no body.
    ended: bool,
}

/// Reads the final head. Interim ones are skipped.
async fn head<S>(connection: &mut Connection<S>) -> Result<Answer, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let (fields, ended) = match connection.next().await? {
            Part::Head(fields, ended) => (fields, ended),
            Part::Data(..) => return Err(Error::Protocol("the body arrived before the head")),
            Part::Push => return Err(PUSH),
        };
        let status = value(&fields, ":status").and_then(number::<u16>);
        match status.filter(|status| (100..1000).contains(status)) {
            None => return Err(Error::Protocol("bad status")),
            Some(100..200) if ended => return Err(Error::Protocol("no final answer")),
            Some(100..200) => {}
            Some(status) => {
                let location = value(&fields, "location").filter(|location| !location.is_empty());
                let length = content_length(&fields);
                return Ok(Answer {
                    head: ResponseHead {
                        status,
                        location: location.map(<[u8]>::to_vec),
                        has_long_body: length.is_some_and(|length| length > BODY_LIMIT),
                    },
                    length,
                    ended,
                });
            }
        }
    }
}

/// Reads as much of a body of `length` as the kubelet reads.
async fn body<S>(connection: &mut Connection<S>, length: Option<usize>) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut read = 0_usize;
    loop {
        let ended = match connection.next().await? {
            Part::Data(data, ended) => {
                read += data.len();
                ended
            }
            Part::Head(fields, ended) => {
                if !ended || value(&fields, ":status").is_some() {
                    return Err(Error::Protocol("invalid trailers"));
                }
                true
            }
            Part::Push => return Err(PUSH),
        };
        if read.min(length.unwrap_or(read)) >= BODY_LIMIT {
            return Ok(());
        }
        match length {
            Some(length) if read > length => {
                return Err(Error::Protocol(
                    "the body is longer than its Content-Length",
                ));
            }
            Some(length) if ended && read < length => return Err(SHORT),
            _ if ended => return Ok(()),
            _ => {}
        }
    }
}

/// The announced length of the body. Like Go, ignores lengths that differ and a length that is not a number.
fn content_length(fields: &[Field]) -> Option<usize> {
    let mut lengths = values(fields, "content-length");
    let first = lengths.next()?;
    if lengths.any(|other| other != first) || !first.iter().all(u8::is_ascii_digit) {
        return None;
    }
    number::<i64>(first).and_then(|length| usize::try_from(length).ok())
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Translates the request to HTTP/2: its Host becomes the authority.
fn translate(request: &Request<'_>, authority: &str) -> Vec<Field> {
    let host = request.header("host").unwrap_or(authority.as_bytes());
    let pseudo = [
        (":authority", host),
        (":method", b"GET"),
        (":path", request.target.as_bytes()),
        (":scheme", b"https"),
    ];
    let pseudo = pseudo.map(|(name, value)| (name.into(), value.to_vec()));
    let headers = request
        .in_http2()
        .filter(|(name, _)| !name.eq_ignore_ascii_case("host"))
        .map(|(name, value)| (name.to_ascii_lowercase().into_bytes(), value.to_vec()));
    pseudo.into_iter().chain(headers).collect()
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::timeout;

    use bytes::Bytes;

    use super::*;
    use crate::WIRE_LIMIT;
    use crate::verdict::Reason;

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
