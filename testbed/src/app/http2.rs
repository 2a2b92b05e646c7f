//! HTTP/2 after a TLS handshake: statuses only.

use std::net::SocketAddr;

use anyhow::Result;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Recorded;
use super::process::State;

/// Serves requests until one end closes.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    port: u16,
    peer: SocketAddr,
    state: &State,
) -> Result<()> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        let head = head(&request);
        let path = request.uri().path();
        let status = match (path, state.status(port, path)) {
            (_, Some(status)) => status,
            ("/failing", _) => 503,
            _ => path
                .strip_prefix("/status/")
                .and_then(|text| text.parse().ok())
                .unwrap_or(200),
        };
        state.record(Recorded {
            port,
            peer,
            protocol: "h2".to_owned(),
            head,
        });
        let response = http::Response::builder().status(status).body(())?;
        let mut body = respond.send_response(response, false)?;
        body.send_data(Bytes::from_static(b"ok"), true)?;
    }
    Ok(())
}

/// The request's headers, one a line.
pub(super) fn head<B>(request: &http::Request<B>) -> String {
    let uri = request.uri();
    let mut text = format!(
        ":method: {}\n:authority: {}\n:path: {}\n",
        request.method(),
        uri.authority().map_or("", |authority| authority.as_str()),
        uri.path_and_query().map_or("", |path| path.as_str()),
    );
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    text
}
