//! HTTP/1 as Go's net/http client reads it.

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Go's default for the answer's head.
const HEAD_LIMIT: usize = 10 << 20;
/// Informational answers that Go's client skips.
const INFORMATIONAL: usize = 5;

/// An answer's head, and the part of the body that has arrived.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) head: String,
    headers: Vec<(String, String)>,
    buffer: Vec<u8>,
}

impl Response {
    /// The first header with that name, which is in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Sends a request and reads the head of its answer.
pub(super) async fn exchange<S>(stream: &mut S, request: &str) -> Result<Response>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut buffer = Vec::new();
    for _ in 0..=INFORMATIONAL {
        let head = read_head(stream, &mut buffer).await?;
        let response = parse(head, std::mem::take(&mut buffer))?;
        if response.status == 101 || !(100..200).contains(&response.status) {
            return Ok(response);
        }
        buffer = response.buffer;
    }
    bail!("net/http: too many 1xx informational responses")
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Result<String> {
    loop {
        // Go ends lines at \n, with or without \r.
        let end = ["\r\n\r\n", "\n\n"]
            .iter()
            .filter_map(|mark| {
                let at = buffer
                    .windows(mark.len())
                    .position(|bytes| bytes == mark.as_bytes())?;
                Some(at + mark.len())
            })
            .min();
        if let Some(end) = end {
            let head: Vec<u8> = buffer.drain(..end).collect();
            return Ok(String::from_utf8_lossy(&head).into_owned());
        }
        // Does not wait for more bytes of an invalid answer.
        let start = &buffer[..buffer.len().min(5)];
        if !b"HTTP/".starts_with(start) && !start.starts_with(b"HTTP/") {
            bail!(
                "malformed HTTP response {:?}",
                String::from_utf8_lossy(buffer)
            );
        }
        if buffer.len() > HEAD_LIMIT {
            bail!("net/http: server response headers exceeded {HEAD_LIMIT} bytes; aborted");
        }
        if stream.read_buf(buffer).await? == 0 {
            match buffer.is_empty() {
                true => bail!("EOF"),
                false => bail!("unexpected EOF"),
            }
        }
    }
}

fn parse(head: String, buffer: Vec<u8>) -> Result<Response> {
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    let malformed = || format!("malformed HTTP response {first:?}");
    let (version, rest) = first.split_once(' ').with_context(malformed)?;
    if !["HTTP/1.0", "HTTP/1.1"].contains(&version) {
        bail!("malformed HTTP version {version:?}");
    }
    let code = rest.trim_start().split(' ').next().unwrap_or_default();
    if code.len() != 3 {
        bail!("malformed HTTP status code {code:?}");
    }
    let status = code.parse().with_context(malformed)?;
    let mut headers = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line
            .split_once(':')
            .with_context(|| format!("malformed MIME header line: {line}"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Response {
        status,
        head,
        headers,
        buffer,
    })
}

/// Reads the body, `limit` bytes at most.
///
/// # Errors
/// When it ends before its time.
pub(super) async fn body(
    stream: &mut (impl AsyncRead + Unpin),
    response: Response,
    limit: usize,
) -> Result<Vec<u8>> {
    if matches!(response.status, 204 | 304) {
        return Ok(Vec::new());
    }
    let chunked = response
        .header("transfer-encoding")
        .is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    if chunked {
        return read_chunks(stream, response.buffer, limit).await;
    }
    let length = match response.header("content-length") {
        Some(text) => Some(
            text.parse::<usize>()
                .with_context(|| format!("bad Content-Length {text:?}"))?,
        ),
        None => None,
    };
    let mut buffer = response.buffer;
    let wanted = length.unwrap_or(limit).min(limit);
    while buffer.len() < wanted {
        if stream.read_buf(&mut buffer).await? == 0 {
            match length {
                Some(_) => bail!("unexpected EOF"),
                None => break,
            }
        }
    }
    buffer.truncate(wanted);
    Ok(buffer)
}

async fn read_chunks(
    stream: &mut (impl AsyncRead + Unpin),
    mut buffer: Vec<u8>,
    limit: usize,
) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line_end = loop {
            match buffer.windows(2).position(|bytes| bytes == b"\r\n") {
                Some(at) => break at,
                None if stream.read_buf(&mut buffer).await? == 0 => bail!("unexpected EOF"),
                None => {}
            }
        };
        let line = String::from_utf8_lossy(&buffer[..line_end]).into_owned();
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16).context("invalid byte in chunk length")?;
        buffer.drain(..line_end + 2);
        if size == 0 || body.len() >= limit {
            body.truncate(limit);
            return Ok(body);
        }
        while buffer.len() < size + 2 && body.len() + buffer.len() < limit {
            if stream.read_buf(&mut buffer).await? == 0 {
                bail!("unexpected EOF");
            }
        }
        let here = size.min(buffer.len());
        body.extend(buffer.drain(..here));
        if body.len() >= limit {
            body.truncate(limit);
            return Ok(body);
        }
        buffer.drain(..buffer.len().min(2));
    }
}
