//! Apps with TLS, HTTP/2 and gRPC.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic_health::ServingStatus;
use tower::Service;

use super::harness::listening;

/// The last request that an app received.
#[derive(Clone, Default)]
pub(super) struct Seen {
    pub(super) target: String,
    /// Host or `:authority`.
    pub(super) host: String,
    pub(super) user_agent: String,
    pub(super) headers: Vec<String>,
    /// Server name in the TLS handshake.
    pub(super) server_name: Option<String>,
}

fn note(seen: &Mutex<Seen>, request: &http::Request<Incoming>) {
    let header = |name: &str| {
        let value = request.headers().get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let mut seen = seen.lock();
    seen.target = request
        .uri()
        .path_and_query()
        .map(ToString::to_string)
        .unwrap_or_default();
    seen.host = request
        .uri()
        .authority()
        .map_or_else(|| header("host").to_owned(), ToString::to_string);
    seen.user_agent = header("user-agent").to_owned();
    seen.headers = request.headers().keys().map(ToString::to_string).collect();
}

/// The kind of key and certificate.
#[derive(Clone, Copy, Debug)]
pub(super) enum Key {
    Ecdsa,
    Ed25519,
    /// RSA, a certificate of version 1 that has expired: `openssl x509 -req -signkey ... -days -1`.
    RsaV1Expired,
}

impl Key {
    fn certified(self) -> CertifiedKey {
        let generated = |algorithm| {
            let key = KeyPair::generate_for(algorithm).expect("a key");
            let params = CertificateParams::new(vec!["app".to_owned()]).expect("parameters");
            let certificate = params.self_signed(&key).expect("a certificate");
            (certificate.der().to_vec(), key.serialize_der())
        };
        let (certificate, key) = match self {
            Self::Ecdsa => generated(&rcgen::PKCS_ECDSA_P256_SHA256),
            Self::Ed25519 => generated(&rcgen::PKCS_ED25519),
            Self::RsaV1Expired => (
                include_bytes!("fixtures/rsa-v1.cert.der").to_vec(),
                include_bytes!("fixtures/rsa-v1.key.der").to_vec(),
            ),
        };
        let key = PrivateKeyDer::try_from(key).expect("a key");
        let key = ring::sign::any_supported_type(&key).expect("a key that ring supports");
        CertifiedKey::new(vec![CertificateDer::from(certificate)], key)
    }
}

/// Serves one certificate, and records the server name in the ClientHello.
#[derive(Debug)]
struct Certificate {
    key: Arc<CertifiedKey>,
    asked: Arc<Mutex<Option<String>>>,
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        *self.asked.lock() = hello.server_name().map(ToOwned::to_owned);
        Some(Arc::clone(&self.key))
    }
}

/// An app that answers over TLS.
pub(super) struct TlsApp {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    asked: Arc<Mutex<Option<String>>>,
}

impl TlsApp {
    /// An app that always answers `status`, with `location` if given, in the HTTP version of `alpn`.
    pub(super) async fn new(
        key: Key,
        version: &'static rustls::SupportedProtocolVersion,
        alpn: Option<&'static str>,
        status: u16,
        location: Option<String>,
    ) -> Self {
        let asked = Arc::default();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("a version that ring supports")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Certificate {
                key: Arc::new(key.certified()),
                asked: Arc::clone(&asked),
            }));
        config.alpn_protocols = alpn
            .map(|alpn| alpn.as_bytes().to_vec())
            .into_iter()
            .collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let app = Self {
            address: listener.local_addr().expect("address"),
            seen: Arc::default(),
            asked,
        };
        let seen = Arc::clone(&app.seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let (seen, location) = (Arc::clone(&seen), location.clone());
                let service = service_fn(move |request| {
                    note(&seen, &request);
                    let mut response = http::Response::builder().status(status);
                    if let Some(location) = &location {
                        response = response.header("location", location);
                    }
                    let response = response.body(Empty::<Bytes>::new());
                    async move { response }
                });
                let io = TokioIo::new(stream);
                if alpn == Some("h2") {
                    tokio::spawn(
                        http2::Builder::new(TokioExecutor::new()).serve_connection(io, service),
                    );
                } else {
                    tokio::spawn(http1::Builder::new().serve_connection(io, service));
                }
            }
        });
        app
    }

    pub(super) fn seen(&self) -> Seen {
        let mut seen = self.seen.lock().clone();
        seen.server_name = self.asked.lock().clone();
        seen
    }
}

/// An app with the gRPC health service: the empty service and `up` are SERVING, `down` is not.
pub(super) struct Grpc {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Grpc {
    pub(super) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let app = Self {
            address: listener.local_addr().expect("address"),
            seen: Arc::default(),
        };
        let (reporter, server) = tonic_health::server::health_reporter();
        reporter
            .set_service_status("up", ServingStatus::Serving)
            .await;
        reporter
            .set_service_status("down", ServingStatus::NotServing)
            .await;
        let seen = Arc::clone(&app.seen);
        tokio::spawn(async move {
            let _reporter = reporter;
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, server) = (Arc::clone(&seen), server.clone());
                let service = service_fn(move |request: http::Request<Incoming>| {
                    note(&seen, &request);
                    let mut server = server.clone();
                    async move { server.call(request).await }
                });
                tokio::spawn(
                    http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        app
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().clone()
    }
}

/// The address of a server that sends `text` on each connection, ends its side, and reads until the client closes.
pub(super) async fn greeting(text: &'static str) -> SocketAddr {
    let (listener, address) = listening().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(text.as_bytes()).await;
            let _ = stream.shutdown().await;
            tokio::spawn(async move {
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            });
        }
    });
    address
}
