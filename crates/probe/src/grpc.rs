//! A gRPC health check as kubernetes pkg/probe/grpc/grpc.go makes it: in plaintext, with the service in the
//! message, and with the probe's timeout for dial and call together.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::dial::{Dial, dial};
use super::http2::{self, Connection, Field, Part, value};
use super::verdict::Reason;
use super::{BODY_LIMIT, Finding};

/// The wait after the first failed dial.
const BACKOFF: Duration = Duration::from_secs(1);
/// The factor by which each further wait is longer.
const BACKOFF_GROWTH: f64 = 1.6;

/// Requests the health of `service` from the app at `address`, with the kubelet's `user_agent` and with the time until
/// `deadline` as the call's timeout. With `redial`, an app that does not listen is dialled again until the deadline. Has no
/// timeout of its own.
pub async fn check(
    dialer: &dyn Dial,
    address: SocketAddr,
    service: &str,
    user_agent: Option<&[u8]>,
    deadline: Option<Instant>,
    redial: bool,
) -> Finding {
    let stream = match dial_until(dialer, address, deadline.filter(|_| redial)).await {
        Ok(stream) => stream,
        Err(finding) => return finding,
    };
    match call(stream, address, service, user_agent, deadline).await {
        Ok(finding) | Err(finding) => finding,
    }
}

pub(crate) async fn call(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    address: SocketAddr,
    service: &str,
    user_agent: Option<&[u8]>,
    deadline: Option<Instant>,
) -> Result<Finding, Finding> {
    let mut connection = Connection::open(stream).await;
    connection
        .ready()
        .await
        .map_err(http2::Error::into_finding)?;
    let fields = fields(address, user_agent, deadline);
    if !connection.accepts(&fields) {
        return Err(failed(INTERNAL));
    }
    connection.request(&fields, message(service)).await;
    answer(&mut connection)
        .await
        .map_err(http2::Error::into_finding)
}

/// The finding of the answer to a request that was sent.
///
/// # Errors
/// There is no complete answer.
async fn answer(
    connection: &mut Connection<impl AsyncRead + AsyncWrite + Unpin>,
) -> Result<Finding, http2::Error> {
    let mut answer = Answer::default();
    loop {
        match answer.take(connection.next().await?) {
            Ok(None) => {}
            Ok(Some(OK)) => return Ok(answer.status().unwrap_or_else(|finding| finding)),
            Ok(Some(code)) => return Ok(failed(code)),
            Err(finding) => return Ok(finding),
        }
    }
}

/// The finding of a health check that another process made, from `bytes`: all that the app has sent on the connection. None
/// if they do not contain a complete answer.
pub async fn recorded(bytes: &[u8]) -> Option<Finding> {
    let stream = tokio::io::join(bytes, tokio::io::sink());
    let mut connection = Connection::open(stream).await;
    let read = async {
        connection.ready().await?;
        answer(&mut connection).await
    };
    match read.await {
        Ok(finding) => Some(finding),
        Err(http2::Error::Closed(_)) => None,
        Err(error) => Some(error.into_finding()),
    }
}

/// The head of the request.
fn fields(address: SocketAddr, user_agent: Option<&[u8]>, deadline: Option<Instant>) -> Vec<Field> {
    let timeout =
        deadline.map(|deadline| timeout(deadline.saturating_duration_since(Instant::now())));
    let address = address.to_string();
    let fields = [
        (":method", Some(b"POST".as_slice())),
        (":scheme", Some(b"http")),
        (":path", Some(b"/grpc.health.v1.Health/Check")),
        (":authority", Some(address.as_bytes())),
        ("content-type", Some(b"application/grpc")),
        ("user-agent", user_agent),
        ("te", Some(b"trailers")),
        ("grpc-timeout", timeout.as_deref().map(str::as_bytes)),
    ];
    fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.into(), value?.to_vec())))
        .collect()
}

/// The text of a `grpc-timeout`: at most eight digits and a unit, rounded up.
fn timeout(timeout: Duration) -> String {
    let nanos = timeout.as_nanos();
    let units = [
        (1, 'n'),
        (1_000, 'u'),
        (1_000_000, 'm'),
        (1_000_000_000, 'S'),
    ];
    let fitting = units
        .map(|(length, unit)| (nanos.div_ceil(length), unit))
        .into_iter()
        .find(|(count, _)| *count < 100_000_000);
    let (count, unit) = fitting.unwrap_or((99_999_999, 'S'));
    format!("{count}{unit}")
}

/// A HealthCheckRequest for `service`, with gRPC's prefix: not compressed, and the length.
fn message(service: &str) -> Vec<u8> {
    let mut request = Vec::new();
    if !service.is_empty() {
        // Field 1, a string, and its length as a varint.
        request.push(1 << 3 | 2);
        let mut length = service.len();
        while length >= 128 {
            request.push(length as u8 | 128);
            length >>= 7;
        }
        request.push(length as u8);
        request.extend_from_slice(service.as_bytes());
    }
    let mut message = vec![0];
    message.extend_from_slice(&(request.len() as u32).to_be_bytes());
    message.append(&mut request);
    message
}

/// Dials until `deadline`; only once if there is none. Like grpc-go, dials again if the app does not listen (its
/// doc/connection-backoff.md: after a second, then after 1.6 times as long each time).
async fn dial_until(
    dialer: &dyn Dial,
    address: SocketAddr,
    deadline: Option<Instant>,
) -> Result<TcpStream, Finding> {
    let mut wait = BACKOFF;
    loop {
        let error = match dial(dialer, address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => Finding::dial(&error),
        };
        let again = Instant::now() + wait;
        let is_apps = matches!(error.reason, Reason::Refused | Reason::ConnectionClosed);
        if !is_apps || deadline.is_none_or(|deadline| again >= deadline) {
            return Err(error);
        }
        sleep_until(again).await;
        wait = wait.mul_f64(BACKOFF_GROWTH);
    }
}

/// Status codes of google.golang.org/grpc/codes that a check gives itself.
const OK: i32 = 0;
const UNKNOWN: i32 = 2;
const INTERNAL: i32 = 13;
/// `DEADLINE_EXCEEDED` of the same.
const DEADLINE_EXCEEDED: i32 = 4;

/// Names of the codes.
const CODES: [&str; 17] = [
    "OK",
    "Cancelled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The finding for an app that answered with this `ServingStatus` of grpc.health.v1.
pub fn answered(status: u32) -> Finding {
    let name = match status {
        0 => "UNKNOWN",
        1 => return Finding::healthy(""),
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "a status that the protocol does not define",
    };
    Finding::without_answer(Reason::NotServing, name)
}

/// The finding for a call that ended with `code`.
fn failed(code: i32) -> Finding {
    let name = usize::try_from(code).ok().and_then(|code| CODES.get(code));
    let reason = match code {
        DEADLINE_EXCEEDED => Reason::TimedOut,
        _ => Reason::GrpcStatus,
    };
    Finding::without_answer(
        reason,
        name.copied().unwrap_or("a code that gRPC does not define"),
    )
}

/// The answer, judged as by grpc-go, which the kubelet uses (grpc-go internal/transport/http2_client.go, `operateHeaders`
/// and `handleData`; stream.go, `recvMsg`).
#[derive(Default)]
struct Answer {
    has_head: bool,
    /// Messages with their prefixes.
    body: Vec<u8>,
}

impl Answer {
    /// Takes the next part. Returns the call's status code once the answer is complete.
    fn take(&mut self, part: Part) -> Result<Option<i32>, Finding> {
        match part {
            // Ignores it, like grpc-go.
            Part::Push => Ok(None),
            // No trailers.
            Part::Data(_, true) => Ok(Some(INTERNAL)),
            Part::Data(data, false) => {
                self.body.extend_from_slice(&data);
                if self.body.len() > BODY_LIMIT {
                    return Err(Finding::without_answer(
                        Reason::BadResponse,
                        "the answer is too long",
                    ));
                }
                Ok(None)
            }
            Part::Head(_, false) if self.has_head => Ok(Some(INTERNAL)),
            Part::Head(fields, ended) => self
                .take_head(&fields, ended)
                .map_or_else(|code| Ok(Some(code)), |status| Ok(status.filter(|_| ended))),
        }
    }

    /// Takes a head or trailers. Returns the status in it, or none if it is interim.
    ///
    /// # Errors
    /// The status code with which grpc-go ends the call.
    fn take_head(&mut self, fields: &[Field], ended: bool) -> Result<Option<i32>, i32> {
        let types: Vec<_> = http2::values(fields, "content-type").collect();
        if !self.has_head && !types.iter().any(|value| is_grpc(value)) {
            let status = value(fields, ":status").unwrap_or_default();
            let is_interim = matches!(status, [b'1', _, _]);
            return if is_interim && !ended {
                Ok(None)
            } else {
                Err(UNKNOWN)
            };
        }
        let mut code = UNKNOWN;
        let mut is_malformed = false;
        for (name, value) in fields {
            match name.as_slice() {
                b"grpc-status" => {
                    let text = std::str::from_utf8(value).ok();
                    code = text.and_then(|text| text.parse().ok()).ok_or(UNKNOWN)?;
                }
                name if name.ends_with(b"-bin") => is_malformed |= decoded(value).is_none(),
                _ => {}
            }
        }
        if is_malformed {
            return Err(INTERNAL);
        }
        self.has_head = true;
        // Status details with another code are an error of the server.
        let mut details = http2::values(fields, "grpc-status-details-bin");
        if let (Some(only), None) = (details.next(), details.next())
            && let Some(details) = decoded(only).and_then(|details| field_1(&details))
            && details as i32 != code
        {
            code = INTERNAL;
        }
        Ok(Some(code))
    }

    /// The finding for a call that ended with OK.
    fn status(&self) -> Result<Finding, Finding> {
        let message = match self.body.as_slice() {
            // Not compressed.
            [0, a, b, c, d, rest @ ..] => {
                let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                let message = rest.split_at_checked(length);
                // A second message is an error; an incomplete one is not.
                message.filter(|(_, more)| more.len() < 5)
            }
            _ => None,
        };
        // An enum has 32 bits; the kubelet's parser keeps the lowest 32 bits of a longer number.
        match message
            .and_then(|(message, _)| field_1(message))
            .map(|status| status as u32)
        {
            Some(status) => Ok(answered(status)),
            None => Err(failed(INTERNAL)),
        }
    }
}

/// The number in field 1 of a message of protocol buffers, 0 if there is none. `None` if the message is malformed.
fn field_1(mut message: &[u8]) -> Option<u64> {
    let mut value = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        if tag >> 3 == 0 {
            return None;
        }
        let length = match tag & 7 {
            0 => {
                let number = varint(&mut message)?;
                if tag >> 3 == 1 {
                    value = number;
                }
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        message = message.get(length..)?;
    }
    Some(value)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

/// The bytes of a field whose name ends in `-bin`: base64, with or without padding. `None` if it is malformed.
fn decoded(value: &[u8]) -> Option<Vec<u8>> {
    let padding = match value.len() % 4 {
        0 => DecodePaddingMode::RequireCanonical,
        _ => DecodePaddingMode::RequireNone,
    };
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(padding)
        .with_decode_allow_trailing_bits(true);
    let engine = GeneralPurpose::new(&alphabet::STANDARD, config);
    engine.decode(value).ok()
}

/// Whether `content_type` is application/grpc, with or without a subtype or parameters
/// (grpc-go internal/grpcutil/method.go, `ContentSubtype`).
fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    matches!(rest, Some([] | [b'+' | b';', ..]))
}

#[cfg(test)]
mod tests {
    use std::io;

    use socket2::{Domain, Socket, Type};
    use tokio::net::TcpSocket;

    use super::*;

    struct Plain;

    impl Dial for Plain {
        fn socket(&self, _to: SocketAddr) -> io::Result<Socket> {
            Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)
        }
    }

    /// An address on which nothing listens until `listen` is called.
    fn reserved() -> (TcpSocket, SocketAddr) {
        let socket = TcpSocket::new_v4().expect("socket");
        socket
            .bind("127.0.0.1:0".parse().expect("address"))
            .expect("bound");
        let address = socket.local_addr().expect("address");
        (socket, address)
    }

    /// The finding for an app that answers with these headers, SERVING, and these trailers.
    async fn answered(
        headers: &'static [(&'static str, &'static str)],
        trailers: &'static [(&'static str, &'static str)],
    ) -> Finding {
        let (socket, address) = reserved();
        let listener = socket.listen(1).expect("listens");
        let app = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let mut connection = h2::server::handshake(stream).await.expect("a handshake");
            let (_, mut respond) = connection
                .accept()
                .await
                .expect("a request")
                .expect("valid");
            let mut head = http::Response::new(());
            let mut end = http::HeaderMap::new();
            for (map, pairs) in [(head.headers_mut(), headers), (&mut end, trailers)] {
                for (name, value) in pairs {
                    let _ = map.append(*name, http::HeaderValue::from_static(value));
                }
            }
            let mut body = respond.send_response(head, false).expect("a head");
            // A message that is not compressed, of two bytes: status (1) SERVING (1).
            let message = [0, 0, 0, 0, 2, 8, 1];
            body.send_data(message.to_vec().into(), false)
                .expect("a message");
            body.send_trailers(end).expect("trailers");
            while connection.accept().await.is_some() {}
        });
        let finding = check(&Plain, address, "", None, None, false).await;
        app.abort();
        finding
    }

    const OK: &[(&str, &str)] = &[("grpc-status", "0")];

    #[tokio::test]
    async fn an_answer_of_another_content_type_fails() {
        for (content_type, healthy) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;v=1", true),
            ("application/grpc-web", false),
            ("Application/GRPC", false),
            ("text/plain", false),
        ] {
            let headers: Box<[_]> = Box::new([("content-type", content_type)]);
            let finding = answered(Box::leak(headers), OK).await;
            let reason = if healthy {
                Reason::Healthy
            } else {
                Reason::GrpcStatus
            };
            assert_eq!(finding.reason, reason, "{content_type}");
        }
        assert_eq!(answered(&[], OK).await.reason, Reason::GrpcStatus);
    }

    #[tokio::test]
    async fn a_status_counts_at_the_end_and_an_encoding_only_if_used() {
        const TYPE: (&str, &str) = ("content-type", "application/grpc");
        let encoded = answered(&[TYPE, ("grpc-encoding", "gzip")], OK).await;
        assert_eq!(encoded.reason, Reason::Healthy, "{encoded:?}");
        let early = answered(&[TYPE, ("grpc-status", "0")], &[("x", "y")]).await;
        assert_eq!(early.reason, Reason::GrpcStatus, "{early:?}");
        let overruled = answered(&[TYPE, ("grpc-status", "5")], OK).await;
        assert_eq!(overruled.reason, Reason::Healthy, "{overruled:?}");
    }

    #[tokio::test]
    async fn status_details_must_be_base64() {
        const TYPE: (&str, &str) = ("content-type", "application/grpc");
        for (details, reason) in [
            ("!!!", Reason::GrpcStatus),
            ("CAA", Reason::Healthy),
            ("CAA=", Reason::Healthy),
        ] {
            let details = ("grpc-status-details-bin", details);
            let trailers: Box<[_]> = Box::new([("grpc-status", "0"), details]);
            let in_trailers = answered(&[TYPE], Box::leak(trailers)).await;
            assert_eq!(in_trailers.reason, reason, "{details:?}");
            let headers: Box<[_]> = Box::new([TYPE, details]);
            let in_headers = answered(Box::leak(headers), OK).await;
            assert_eq!(in_headers.reason, reason, "{details:?}");
        }
    }

    #[tokio::test]
    async fn a_recorded_answer_has_a_finding_once_it_is_complete() {
        const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
        // The status and content type of an answer of Go's, a message, and trailers with grpc-status 0.
        let mut bytes = SETTINGS.to_vec();
        bytes.extend([0, 0, 14, 1, 4, 0, 0, 0, 1]);
        bytes.extend(b"\x88\x5f\x8b\x1d\x75\xd0\x62\x0d\x26\x3d\x4c\x4d\x65\x64");
        bytes.extend([0, 0, 7, 0, 0, 0, 0, 0, 1]);
        let status = bytes.len() + 6;
        bytes.extend([0, 0, 0, 0, 2, 8, 1]);
        bytes.extend([0, 0, 12, 1, 5, 0, 0, 0, 1]);
        bytes.extend(b"\x40\x88\x9a\xca\xc8\xb2\x12\x34\xda\x8f\x01\x30");
        for length in 0..bytes.len() {
            assert_eq!(recorded(&bytes[..length]).await, None, "{length} bytes");
        }
        assert_eq!(recorded(&bytes).await, Some(Finding::healthy("")));
        bytes[status] = 2;
        let not_serving = recorded(&bytes).await.expect("a finding");
        assert_eq!(not_serving.reason, Reason::NotServing);
        if let Some(code) = bytes.last_mut() {
            *code = b'5';
        }
        let failed = recorded(&bytes).await.expect("a finding");
        assert_eq!(
            (failed.reason, failed.detail.as_str()),
            (Reason::GrpcStatus, "NotFound")
        );
        let other = recorded(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .expect("a finding");
        assert_eq!(other.reason, Reason::BadResponse);
    }

    #[tokio::test]
    async fn an_app_that_does_not_listen_yet_is_dialled_again() {
        let (socket, address) = reserved();
        let begun = Instant::now();
        let deadline = Some(begun + Duration::from_secs(60));
        let listening = async {
            sleep_until(begun + BACKOFF / 2).await;
            socket.listen(1).expect("listens")
        };
        let (dialled, _listener) = tokio::join!(dial_until(&Plain, address, deadline), listening);
        assert!(dialled.is_ok());
        assert!(begun.elapsed() >= BACKOFF);
    }

    #[tokio::test]
    async fn an_app_is_not_dialled_again_after_the_deadline() {
        let (_socket, address) = reserved();
        let begun = Instant::now();
        let deadline = Some(begun + BACKOFF);
        let refused = dial_until(&Plain, address, deadline).await;
        assert_eq!(refused.expect_err("a refusal").reason, Reason::Refused);
        assert!(begun.elapsed() < BACKOFF, "at once");
    }
}
