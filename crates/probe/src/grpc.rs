//! A gRPC health check as kubernetes pkg/probe/grpc/grpc.go makes it: in plaintext, with the service in the
//! message, and with the probe's timeout for dial and call together.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::Service;

use super::dial::{Dial, dial};
use super::verdict::Reason;
use super::{Finding, http2};

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

async fn call(
    stream: TcpStream,
    address: SocketAddr,
    service: &str,
    user_agent: Option<&[u8]>,
    deadline: Option<Instant>,
) -> Result<Finding, Finding> {
    let (sender, _connection) = http2::connect(stream).await.map_err(http2::failed)?;
    let origin = Uri::builder()
        .scheme("http")
        .authority(address.to_string())
        .path_and_query("/")
        .build()
        .map_err(|error| Finding::without_answer(Reason::Dial, error.to_string()))?;
    let transport = Transport {
        sender,
        user_agent: user_agent.and_then(|agent| HeaderValue::from_bytes(agent).ok()),
    };
    let mut request = tonic::Request::new(HealthCheckRequest {
        service: service.to_owned(),
    });
    if let Some(deadline) = deadline {
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
    }
    let response = HealthClient::with_origin(transport, origin)
        .max_decoding_message_size(super::BODY_LIMIT)
        .check(request)
        .await
        .map_err(|status| refused(&status))?;
    Ok(match response.into_inner().status() {
        ServingStatus::Serving => Finding::healthy(""),
        other => Finding::without_answer(Reason::NotServing, other.as_str_name()),
    })
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

/// The finding for a failed call.
fn refused(status: &tonic::Status) -> Finding {
    // tonic returns a failed connection as a status too, with the cause.
    let transport =
        std::error::Error::source(status).is_some_and(|cause| cause.is::<hyper::Error>());
    match status.code() {
        code if transport => Finding::without_answer(Reason::ConnectionClosed, format!("{code:?}")),
        Code::DeadlineExceeded => Finding::without_answer(Reason::TimedOut, "DeadlineExceeded"),
        code => Finding::without_answer(Reason::GrpcStatus, format!("{code:?}")),
    }
}

/// One HTTP/2 connection, as the service that tonic requires.
struct Transport {
    sender: SendRequest<Body>,
    user_agent: Option<HeaderValue>,
}

impl Service<http::Request<Body>> for Transport {
    type Response = http::Response<Body>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(agent) = &self.user_agent {
            let _ = request.headers_mut().insert(USER_AGENT, agent.clone());
        }
        let answer = self.sender.send_request(request);
        Box::pin(async move { answer.await.map(as_by_grpc_go) })
    }
}

/// Status details, in a header or trailer. They are not used, but must be valid base64: otherwise tonic panics.
const DETAILS: &str = "grpc-status-details-bin";
/// The compression of messages whose flag marks them as compressed.
const ENCODING: &str = "grpc-encoding";
/// `UNKNOWN` of google.golang.org/grpc/codes.
const UNKNOWN: HeaderValue = HeaderValue::from_static("2");

/// `INTERNAL` of the same.
const INTERNAL: HeaderValue = HeaderValue::from_static("13");

/// Adapts the answer so that tonic judges it as grpc-go does, which the kubelet uses (grpc-go
/// internal/transport/http2_client.go, `operateHeaders`). An answer is invalid if its content type is not gRPC's, if its
/// HTTP status is not 200, or if its status details are malformed. A status counts only at the end of the stream, and an
/// encoding only for compressed messages.
fn as_by_grpc_go(response: http::Response<Incoming>) -> http::Response<Body> {
    let (mut parts, body) = response.into_parts();
    let headers = &mut parts.headers;
    let _ = headers.remove(ENCODING);
    if !hyper::body::Body::is_end_stream(&body) {
        let _ = headers.remove(Status::GRPC_STATUS);
    }
    without_details(headers);
    if parts.status != StatusCode::OK || !headers.get(CONTENT_TYPE).is_some_and(is_grpc) {
        let _ = headers.insert(Status::GRPC_STATUS, UNKNOWN);
    }
    let body = body.map_frame(|frame| match frame.into_trailers() {
        Ok(mut trailers) => {
            without_details(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    });
    http::Response::from_parts(parts, Body::new(body))
}

/// Removes status details from `headers`. If they are malformed, sets the status to INTERNAL.
fn without_details(headers: &mut HeaderMap) {
    let details = headers.remove(DETAILS);
    if details.is_some_and(|details| lenient().decode(details).is_err()) {
        let _ = headers.insert(Status::GRPC_STATUS, INTERNAL);
    }
}

/// Base64 with or without padding, as grpc-go accepts it.
fn lenient() -> GeneralPurpose {
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&alphabet::STANDARD, config)
}

/// Whether `content_type` is application/grpc, with or without a subtype or parameters
/// (grpc-go internal/grpcutil/method.go, `ContentSubtype`).
fn is_grpc(content_type: &HeaderValue) -> bool {
    let rest = content_type.as_bytes().strip_prefix(b"application/grpc");
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
                    let _ = map.append(*name, HeaderValue::from_static(value));
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
