//! One GET to a daemon, by a port-forward through the API server.

use std::time::Duration;

use futures_util::FutureExt;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::io::DuplexStream;

use crate::daemons::Daemon;
use support::error_chain::chain;

/// Maximum size of an answer: far above that of a full node (about 1 KiB per probe).
const BODY_MAX: usize = 32 << 20;

/// A daemon's answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// The whole body.
    pub body: Bytes,
}

/// Why there is no answer of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It can't be requested, according to its pod.
    #[error("{0}")]
    Pod(String),
    /// No permission.
    #[error(
        "no permission to port-forward: {0}; component plugin of deploy/ has the Role that this needs"
    )]
    Forbidden(String),
    /// The API server or the kubelet does not forward.
    #[error("the port-forward to {pod} failed: {reason}")]
    Forward {
        /// The daemon's pod.
        pod: String,
        /// Why.
        reason: String,
    },
    /// Nothing listens on the port.
    #[error(
        "nothing listens on port {port} of the node's loopback: the daemon is still starting, or --admin-addr has another address"
    )]
    Refused {
        /// The admin server's port.
        port: u16,
    },
    /// No complete answer in time.
    #[error("no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// Not HTTP, or it ended early.
    #[error("invalid answer on port {port}: {reason}")]
    Answer {
        /// The admin server's port.
        port: u16,
        /// What is wrong.
        reason: String,
    },
    /// The daemon refuses, or its answer can't be read.
    #[error("{0}")]
    Daemon(String),
}

/// Requests `path` from the daemon, within `timeout`.
///
/// # Errors
/// There is no answer.
pub async fn get(
    pods: &Api<Pod>,
    daemon: &Daemon,
    path: &str,
    timeout: Duration,
) -> Result<Answer, Failure> {
    let port = daemon.port.clone().map_err(Failure::Pod)?;
    let exchange = forwarded(pods, &daemon.pod, port, path);
    let answer = tokio::time::timeout(timeout, exchange).await;
    answer.unwrap_or(Err(Failure::TimedOut(timeout)))
}

async fn forwarded(pods: &Api<Pod>, pod: &str, port: u16, path: &str) -> Result<Answer, Failure> {
    let failed = |reason: String| Failure::Forward {
        pod: pod.to_owned(),
        reason,
    };
    let forwarder = pods.portforward(pod, &[port]).await;
    let mut forwarder = forwarder.map_err(|error| match error {
        kube::Error::Api(status) if status.code == 403 => {
            // Removes the name of the pod, which differs for each node.
            let message = status.message.split_once(" is forbidden: ");
            Failure::Forbidden(message.map_or(status.message.clone(), |(_, why)| why.to_owned()))
        }
        kube::Error::Api(status) if !status.message.is_empty() => failed(status.message),
        error => failed(chain(&error)),
    })?;
    let stream = forwarder.take_stream(port);
    let stream = stream.ok_or_else(|| failed("no stream for the port".to_owned()))?;
    let error = forwarder.take_error(port);
    let answer = exchange(stream, path).await;
    // The reason of the kubelet arrives before the end of the stream.
    let reported = error.and_then(FutureExt::now_or_never).flatten();
    match (answer, reported) {
        (Ok(answer), _) => Ok(answer),
        (Err(_), Some(why)) if why.contains("connection refused") => Err(Failure::Refused { port }),
        (Err(_), Some(why)) => Err(failed(why)),
        (Err(reason), None) => Err(Failure::Answer { port, reason }),
    }
}

async fn exchange(stream: DuplexStream, path: &str) -> Result<Answer, String> {
    let text = |error: hyper::Error| chain(&error);
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(text)?;
    // Ends with the exchange; an error of the connection also fails the request.
    let connection = tokio::spawn(connection);
    let request = Request::get(path)
        .header(http::header::HOST, "probe-handler")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(text)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
    connection.abort();
    Ok(Answer {
        status,
        body: body.map_err(|error| error.to_string())?.to_bytes(),
    })
}
