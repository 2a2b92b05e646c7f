//! One GET over a Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Maximum time for the daemon's whole answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of the answer: far above that of a full node (about 1 KiB per probe).
const BODY_MAX: usize = 64 << 20;

/// Why the request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "probe-handler is not running on this node, or uses another socket: cannot connect to {}: {source}; start it \
         with 'probe-handler agent', or set --admin-socket",
        .path.display()
    )]
    Connect { path: PathBuf, source: io::Error },
    #[error("no permission to connect to {}: run this as root, for example with sudo", .path.display())]
    Permission { path: PathBuf },
    #[error(
        "no answer on {} within {} s: the daemon hangs, or the socket belongs to another program",
        .path.display(),
        TIMEOUT.as_secs()
    )]
    TimedOut { path: PathBuf },
    #[error("invalid answer on {}: {reason}", .path.display())]
    Answer { path: PathBuf, reason: String },
    #[error("cannot start a runtime: {0}")]
    Runtime(#[source] io::Error),
}

/// Requests `path` from the daemon at `socket`; returns the status and the whole body.
pub(super) fn get(socket: &Path, path: &str) -> Result<(StatusCode, Bytes), Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?
        .block_on(async {
            tokio::time::timeout(TIMEOUT, exchange(socket, path))
                .await
                .unwrap_or_else(|_| {
                    Err(Error::TimedOut {
                        path: socket.to_owned(),
                    })
                })
        })
}

async fn exchange(socket: &Path, path: &str) -> Result<(StatusCode, Bytes), Error> {
    let stream = UnixStream::connect(socket).await.map_err(|source| {
        let path = socket.to_owned();
        if source.kind() == io::ErrorKind::PermissionDenied {
            Error::Permission { path }
        } else {
            Error::Connect { path, source }
        }
    })?;
    let bad = |reason: &dyn std::fmt::Display| Error::Answer {
        path: socket.to_owned(),
        reason: reason.to_string(),
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| bad(&error))?;
    // This task ends with the runtime; an error of the connection also fails the request.
    drop(tokio::spawn(connection));
    let request = Request::get(path)
        .header(http::header::HOST, "probe-handler")
        .body(Empty::<Bytes>::new())
        .map_err(|error| bad(&error))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| bad(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), BODY_MAX)
        .collect()
        .await
        .map_err(|error| bad(&error))?;
    Ok((status, body.to_bytes()))
}
