//! A gRPC health check, as kubernetes pkg/probe/grpc/grpc.go makes it: plaintext, the service in the
//! message, the probe's timeout for all of it.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderValue, Uri, header::USER_AGENT};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use tokio::time::Instant;
use tonic::Code;
use tonic::body::Body;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::Service;

use super::dial::{Dial, dial};
use super::verdict::Reason;
use super::{Finding, http2};

/// Asks the app at `address` for the health of `service`, under the kubelet's `user_agent`, telling it
/// `deadline`. Has no timeout of its own.
pub async fn check(
    dialer: &dyn Dial,
    address: SocketAddr,
    service: &str,
    user_agent: Option<&[u8]>,
    deadline: Option<Instant>,
) -> Finding {
    match call(dialer, address, service, user_agent, deadline).await {
        Ok(finding) | Err(finding) => finding,
    }
}

async fn call(
    dialer: &dyn Dial,
    address: SocketAddr,
    service: &str,
    user_agent: Option<&[u8]>,
    deadline: Option<Instant>,
) -> Result<Finding, Finding> {
    let stream = dial(dialer, address)
        .await
        .map_err(|error| Finding::dial(&error))?;
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

/// What a failed call means.
fn refused(status: &tonic::Status) -> Finding {
    // A failure of the connection comes as a status too, with its cause.
    let transport =
        std::error::Error::source(status).is_some_and(|cause| cause.is::<hyper::Error>());
    match status.code() {
        code if transport => Finding::without_answer(Reason::ConnectionClosed, format!("{code:?}")),
        Code::DeadlineExceeded => Finding::without_answer(Reason::TimedOut, "DeadlineExceeded"),
        code => Finding::without_answer(Reason::GrpcStatus, format!("{code:?}")),
    }
}

/// One HTTP/2 connection as tonic wants it.
struct Transport {
    sender: SendRequest<Body>,
    user_agent: Option<HeaderValue>,
}

impl Service<http::Request<Body>> for Transport {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(agent) = &self.user_agent {
            let _ = request.headers_mut().insert(USER_AGENT, agent.clone());
        }
        Box::pin(self.sender.send_request(request))
    }
}
