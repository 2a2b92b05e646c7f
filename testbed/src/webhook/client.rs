//! A client that sends admission reviews over TLS, as an API server does.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use json_patch::Patch;
use k8s_openapi::ByteString;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

use super::NAME;

/// A client of a webhook; uses a new connection for each review.
#[derive(Debug)]
pub struct Client {
    dial: Dial,
    runtime: Runtime,
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct Dial {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

/// An answer to a review.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Warnings for the user.
    pub warnings: Vec<String>,
    /// Operations of the patch.
    pub operations: usize,
    /// The object as it was sent, with the patch applied.
    pub object: Value,
}

/// A connection over which reviews can be sent.
#[derive(Debug)]
pub enum Connection {
    /// HTTP/2, as API servers use.
    Http2(http2::SendRequest<Full<Bytes>>),
    /// HTTP/1.1, as other clients use.
    Http1(http1::SendRequest<Full<Bytes>>),
}

impl Client {
    /// Trusts only `authorities` (PEM).
    ///
    /// # Errors
    /// When they can't be parsed.
    pub fn new(address: SocketAddr, authorities: &[u8]) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(authorities) {
            roots.add(authority?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let config = Arc::new(config);
        Ok(Self {
            dial: Dial { address, config },
            runtime,
        })
    }

    /// How it connects.
    pub fn dial(&self) -> Dial {
        self.dial.clone()
    }

    /// Runs `future`.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Sends a review of the creation of `pod`.
    ///
    /// # Errors
    /// When an API server would not accept the answer.
    pub fn admit(&self, pod: &Value) -> Result<Answer> {
        let review = review(pod);
        let body = Bytes::from(review.to_string());
        let answer = self.block_on(async {
            let mut connection = self.dial.connect().await?;
            connection.send(body).await
        })?;
        let answer: Value = serde_json::from_slice(&answer).context("the answer is not JSON")?;
        let response = &answer["response"];
        ensure!(
            answer["apiVersion"] == review["apiVersion"]
                && answer["kind"] == review["kind"]
                && response["uid"] == review["request"]["uid"]
                && response["allowed"] == true,
            "no answer to this review: {answer}"
        );
        let mut object = pod.clone();
        let mut operations = 0;
        if !response["patch"].is_null() {
            ensure!(response["patchType"] == "JSONPatch", "{answer}");
            let ByteString(patch) = serde_json::from_value(response["patch"].clone())?;
            let patch: Patch = serde_json::from_slice(&patch)?;
            operations = patch.0.len();
            json_patch::patch(&mut object, &patch)?;
        }
        let warnings = response["warnings"].as_array();
        let warnings = warnings.into_iter().flatten().filter_map(Value::as_str);
        Ok(Answer {
            warnings: warnings.map(str::to_owned).collect(),
            operations,
            object,
        })
    }
}

impl Dial {
    /// Connects with HTTP/2, as an API server does.
    ///
    /// # Errors
    /// When nothing listens, or the certificate is not trusted.
    pub async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let stream = TlsConnector::from(Arc::clone(&self.config))
            .connect(ServerName::try_from(NAME)?, stream)
            .await?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(stream);
        if is_http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            let _detached = tokio::spawn(connection);
            return Ok(Connection::Http2(sender));
        }
        let (sender, connection) = http1::handshake(io).await?;
        let _detached = tokio::spawn(connection);
        Ok(Connection::Http1(sender))
    }

    /// The same, over HTTP/1.1.
    #[must_use]
    pub fn over_http1(&self) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self {
            address: self.address,
            config: Arc::new(config),
        }
    }
}

impl Connection {
    /// Posts a review; returns the body of the answer.
    ///
    /// # Errors
    /// When it is not answered with 200.
    pub async fn send(&mut self, review: Bytes) -> Result<Bytes> {
        let request = Request::post(format!("https://{NAME}/mutate?timeout=3s"))
            .header("host", NAME)
            .header("content-type", "application/json")
            .body(Full::new(review))?;
        let response = match self {
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(
            status == 200,
            "{status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(body)
    }
}

/// The review of the creation of `pod`, with all other fields that an API server sends.
pub fn review(pod: &Value) -> Value {
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    let resource = json!({"group": "", "version": "v1", "resource": "pods"});
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
            "namespace": "testbed",
            "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:kube-system:replicaset-controller",
                "groups": ["system:serviceaccounts", "system:authenticated"],
            },
            "object": pod,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}
