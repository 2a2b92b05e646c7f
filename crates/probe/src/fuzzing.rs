//! Entry points of the fuzz targets into private parsers.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::SignatureScheme;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::request::Request;
use crate::{Finding, certificate, grpc, http2};

/// An app that sends these bytes and closes, whatever it gets.
struct App<'a>(&'a [u8]);

impl AsyncRead for App<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for App<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(work)
}

fn is_plausible(finding: &Finding) {
    assert!(finding.detail.len() < 500, "text of the app's: {finding:?}");
}

/// An app's side of an HTTP/2 connection, as the answer to a probe and to a hook.
pub fn http2_answer(bytes: &[u8]) {
    let request = Request::parse(b"GET /x HTTP/1.1\r\nHost: app\r\n\r\n");
    let request = request.expect("valid").expect("whole");
    for hook in [false, true] {
        match run(http2::get(App(bytes), &request, "app", hook, None)) {
            Ok(head) => assert!((101..1000).contains(&head.status)),
            Err(finding) => is_plausible(&finding),
        }
    }
}

/// An app's side of a gRPC connection.
pub fn grpc_answer(bytes: &[u8]) {
    let address = SocketAddr::from(([10, 0, 0, 1], 80));
    let (Ok(finding) | Err(finding)) = run(grpc::call(App(bytes), address, "", None, None));
    is_plausible(&finding);
}

/// A certificate, and a signature in a handshake.
pub fn certificate(bytes: &[u8]) {
    let _ = certificate::check(bytes);
    let supported = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    for scheme in [
        SignatureScheme::RSA_PSS_SHA256,
        SignatureScheme::ECDSA_NISTP256_SHA256,
        SignatureScheme::ED25519,
    ] {
        let _ = certificate::verify(&supported, bytes, scheme, b"message", b"signature");
    }
}
