//! How each mesh's proxy ends a plaintext connection that its policy refuses.
//!
//! Observed with Envoy 1.40.0, ztunnel 62d8265 and linkerd2-proxy 29637b6.

use std::convert::Infallible;

use anyhow::{Result, anyhow};
use http::{Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Maximum number of bytes that a client sends at once.
const PIECE: usize = 64 << 10;
/// How HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// Methods by which Envoy's TLS recognises plaintext HTTP. It sends no alert then.
const METHODS: [&[u8]; 5] = [b"GET ", b"POST ", b"HEAD ", b"PUT ", b"CONNE"];
/// A TLS alert: fatal, `protocol_version`.
const ALERT: [u8; 7] = [21, 3, 1, 0, 2, 2, 70];
/// gRPC's PermissionDenied.
const PERMISSION_DENIED: &str = "7";

/// The end of a plaintext connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// A reset: Envoy behind a listener that inspects TLS, as in Istio.
    Reset,
    /// The end of the stream, after a TLS alert unless it is HTTP/1: Envoy without an inspector, as in Kuma and Consul.
    Close,
    /// One of both, at random: ztunnel.
    CloseOrReset,
    /// 403, or gRPC's PermissionDenied. A connection that is not HTTP gets the end of the stream: Linkerd with an
    /// authenticated policy.
    Deny,
}

impl Refusal {
    /// Ends a connection that has sent some bytes, after `number` others.
    pub(super) async fn end(self, mut stream: TcpStream, number: u64) -> Result<()> {
        match self {
            Self::Reset => stream.set_zero_linger()?,
            Self::CloseOrReset if number % 2 == 1 => stream.set_zero_linger()?,
            Self::CloseOrReset => {
                // The kernel resets a connection that is closed with unread bytes.
                let _length = stream.read(&mut vec![0; PIECE]).await?;
                stream.shutdown().await?;
            }
            Self::Close => {
                let mut first = Vec::with_capacity(PIECE);
                let _length = stream.read_buf(&mut first).await?;
                if !METHODS.iter().any(|method| first.starts_with(method)) {
                    stream.write_all(&ALERT).await?;
                }
                stream.shutdown().await?;
            }
            Self::Deny => deny(stream).await?,
        }
        Ok(())
    }
}

async fn deny(mut stream: TcpStream) -> Result<()> {
    let mut first = vec![0; PREFACE.len()];
    let length = stream.peek(&mut first).await?;
    let service =
        hyper::service::service_fn(|request| async move { Ok::<_, Infallible>(denied(&request)) });
    let http1 = first[..length].first().is_some_and(u8::is_ascii_uppercase);
    if first.starts_with(PREFACE) {
        hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
            .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
            .await
            .map_err(|error| anyhow!(error))
    } else if http1 {
        hyper::server::conn::http1::Builder::new()
            .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
            .await
            .map_err(|error| anyhow!(error))
    } else {
        let _length = stream.read(&mut vec![0; PIECE]).await?;
        Ok(stream.shutdown().await?)
    }
}

fn denied<B>(request: &Request<B>) -> Response<String> {
    let is_grpc = request
        .headers()
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let mut response = Response::new(String::new());
    let mut header = |name, value| {
        let _none = response
            .headers_mut()
            .insert(name, http::HeaderValue::from_static(value));
    };
    if is_grpc {
        header("content-type", "application/grpc");
        header("grpc-status", PERMISSION_DENIED);
    } else {
        header("l5d-proxy-error", "unauthorized request on route");
        *response.status_mut() = StatusCode::FORBIDDEN;
    }
    response
}
