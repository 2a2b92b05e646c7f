//! Clients: TLS, and HTTP over it, written by hand or with hyper.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::NAME;

/// Settings with which a client connects.
#[derive(Clone)]
pub struct Dial {
    pub address: SocketAddr,
    /// The trusted authorities, as PEM.
    pub authorities: Vec<u8>,
    pub alpn: &'static [&'static [u8]],
    pub sni: bool,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Whether a pod was admitted with a patch.
    pub fn is_patched(&self) -> bool {
        let response = &self.json()["response"];
        response["allowed"] == true && response["patchType"] == "JSONPatch"
    }
}

/// A connection with which requests can be made.
pub enum Connection {
    Http1(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    Http2(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

impl Dial {
    pub fn new(address: SocketAddr, authorities: &[u8]) -> Self {
        Self {
            address,
            authorities: authorities.to_vec(),
            alpn: &[b"h2", b"http/1.1"],
            sni: true,
        }
    }

    pub fn http1(mut self) -> Self {
        self.alpn = &[b"http/1.1"];
        self
    }

    pub fn config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(&self.authorities) {
            roots.add(authority.expect("PEM")).expect("an authority");
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = self.alpn.iter().map(|name| name.to_vec()).collect();
        config.enable_sni = self.sni;
        config
    }

    pub async fn tls(&self) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        // The same as Go's clients.
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(NAME).expect("name");
        TlsConnector::from(Arc::new(self.config()))
            .connect(name, stream)
            .await
    }

    pub async fn connect(&self) -> io::Result<Connection> {
        let stream = self.tls().await?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(stream);
        if is_http2 {
            let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
            let (sender, connection) = handshake.await.map_err(io::Error::other)?;
            drop(tokio::spawn(connection));
            return Ok(Connection::Http2(sender));
        }
        let handshake = hyper::client::conn::http1::handshake(io);
        let (sender, connection) = handshake.await.map_err(io::Error::other)?;
        drop(tokio::spawn(connection));
        Ok(Connection::Http1(sender))
    }

    /// Posts a review over a separate connection.
    pub async fn review(&self, body: &[u8]) -> io::Result<Answer> {
        self.connect()
            .await?
            .review(body)
            .await
            .map_err(io::Error::other)
    }
}

/// A POST of a review, as API servers send it.
pub fn post(body: &[u8]) -> Request<Full<Bytes>> {
    request(
        Method::POST,
        "/mutate?timeout=3s",
        Some("application/json"),
        body,
    )
}

pub fn request(
    method: Method,
    path: &str,
    content_type: Option<&str>,
    body: &[u8],
) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("https://{NAME}{path}"))
        .header("host", NAME);
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    request
        .body(Full::new(Bytes::copy_from_slice(body)))
        .expect("a request")
}

impl Connection {
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
        let response = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let (head, body) = response.into_parts();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: body.collect().await?.to_bytes(),
        })
    }

    pub async fn review(&mut self, body: &[u8]) -> hyper::Result<Answer> {
        self.send(post(body)).await
    }
}
