//! HTTP/2, if the server selects it by ALPN.

use anyhow::{Context, Result};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};

use super::http::Deadline;

/// Sends a GET and returns the status, the headers as text, and at most `limit` bytes of the body.
pub(super) async fn get<S>(
    stream: S,
    deadline: Deadline,
    url: &url::Url,
    host: &str,
    headers: &[(String, String)],
    limit: usize,
) -> Result<(http::response::Parts, String, Result<Vec<u8>>)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = h2::client::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let answer = exchange(sender, deadline, url, host, headers, limit).await;
    driver.abort();
    answer
}

async fn exchange(
    sender: h2::client::SendRequest<bytes::Bytes>,
    deadline: Deadline,
    url: &url::Url,
    host: &str,
    headers: &[(String, String)],
    limit: usize,
) -> Result<(http::response::Parts, String, Result<Vec<u8>>)> {
    let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let mut request = Request::get(format!("https://{host}{target}"));
    for (name, value) in headers {
        if !name.eq_ignore_ascii_case("connection") {
            request = request.header(name.to_ascii_lowercase(), value);
        }
    }
    let request = request.version(http::Version::HTTP_2).body(())?;
    let mut sender = sender.ready().await?;
    let (response, _) = sender.send_request(request, true)?;
    let (parts, mut stream) = response.await?.into_parts();
    let mut head = format!(":status: {}\n", parts.status.as_u16());
    for (name, value) in &parts.headers {
        head += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    let body = deadline.bound(async {
        let mut body = Vec::new();
        while body.len() < limit
            && let Some(data) = stream.data().await
        {
            let data = data.context("reading the body")?;
            stream.flow_control().release_capacity(data.len())?;
            body.extend_from_slice(&data);
        }
        body.truncate(limit);
        Ok(body)
    });
    let body = body.await;
    Ok((parts, head, body))
}
