//! The gRPC health service, as in real servers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic_health::ServingStatus;
use tower::Service;

use super::Recorded;
use super::http2::head;
use super::process::State;

/// Serves health checks until one end closes.
pub(super) async fn serve(
    stream: TcpStream,
    port: u16,
    peer: SocketAddr,
    state: &Arc<State>,
) -> Result<()> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("", ServingStatus::Serving)
        .await;
    reporter
        .set_service_status("ok", ServingStatus::Serving)
        .await;
    reporter
        .set_service_status("down", ServingStatus::NotServing)
        .await;
    let state = Arc::clone(state);
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let head = head(&request);
        state.record(Recorded {
            port,
            peer,
            protocol: "grpc".to_owned(),
            head,
        });
        let mut health = health.clone();
        async move {
            Ok::<_, Infallible>(
                health
                    .call(request)
                    .await
                    .unwrap_or_else(|never| match never {}),
            )
        }
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(|error| anyhow!(error))
}

/// Answers every call with UNIMPLEMENTED, until one end closes.
pub(super) async fn serve_nothing(stream: TcpStream) -> Result<()> {
    let service = hyper::service::service_fn(|_: hyper::Request<Incoming>| async {
        let status = tonic::Status::unimplemented("");
        Ok::<_, Infallible>(status.into_http::<tonic::body::Body>())
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(|error| anyhow!(error))
}
