//! A hand-written HTTP/1 server, which can misbehave in every way.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Recorded;
use super::process::State;
use crate::pace;

const HEAD_LIMIT: usize = 1 << 20;
/// First byte of a TLS hello.
const TLS_HANDSHAKE: u8 = 0x16;

/// A connection that can be reset if it is plain TCP.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    fn reset_on_close(&self) -> std::io::Result<()>;
    /// The address that the client dialled.
    fn local(&self) -> std::io::Result<SocketAddr>;
}

impl Stream for tokio::net::TcpStream {
    fn reset_on_close(&self) -> std::io::Result<()> {
        self.set_zero_linger()
    }

    fn local(&self) -> std::io::Result<SocketAddr> {
        let local = self.local_addr()?;
        Ok(SocketAddr::new(local.ip().to_canonical(), local.port()))
    }
}

impl<S: Stream> Stream for tokio_rustls::server::TlsStream<S> {
    fn reset_on_close(&self) -> std::io::Result<()> {
        self.get_ref().0.reset_on_close()
    }

    fn local(&self) -> std::io::Result<SocketAddr> {
        self.get_ref().0.local()
    }
}

/// Serves requests until one end closes.
pub(super) async fn serve<S: Stream>(
    mut stream: S,
    port: u16,
    peer: SocketAddr,
    state: &State,
) -> Result<()> {
    let mut buffer = Vec::new();
    while let Some(head) = read_head(&mut stream, &mut buffer).await? {
        state.record(Recorded {
            port,
            peer,
            protocol: "http/1.1".to_owned(),
            head: head.clone(),
        });
        let target = head.split(' ').nth(1).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if path == "/hang" {
            let mut rest = [0; 1024];
            while matches!(stream.read(&mut rest).await, Ok(1..)) {}
            let (protocol, head) = ("hung-up".to_owned(), String::new());
            state.record(Recorded {
                port,
                peer,
                protocol,
                head,
            });
            return Ok(());
        }
        let keep = match state.status(port, path) {
            Some(status) => answer(&mut stream, status, "").await?,
            None => respond(&mut stream, path, query, &head).await?,
        };
        let close = head
            .lines()
            .any(|line| line.to_ascii_lowercase().replace(' ', "") == "connection:close");
        if close || !keep {
            break;
        }
    }
    stream.shutdown().await?;
    Ok(())
}

/// Reads a request's head with its final empty line; `None` at the end of the connection.
async fn read_head(stream: &mut impl Stream, buffer: &mut Vec<u8>) -> Result<Option<String>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head: Vec<u8> = buffer.drain(..end + 4).collect();
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        if buffer.len() > HEAD_LIMIT {
            bail!("the request's head is too long");
        }
        // Like common servers on TLS to a plaintext port.
        if buffer.first() == Some(&TLS_HANDSHAKE) {
            let _closed = answer(stream, 400, "TLS on a plaintext port").await?;
            return Ok(None);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// A number in the query, for example `ms=100`.
fn number(query: &str, name: &str, default: u64) -> u64 {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(default)
}

/// Answers one request; returns whether the connection stays open.
async fn respond(stream: &mut impl Stream, path: &str, query: &str, head: &str) -> Result<bool> {
    let interval = pace::stretch(Duration::from_millis(number(query, "ms", 100)));
    if let Some(status) = path
        .strip_prefix("/status/")
        .and_then(|text| text.parse().ok())
    {
        return answer(stream, status, "").await;
    }
    match path {
        "/failing" => return answer(stream, 503, "failing").await,
        "/slow" => {
            tokio::time::sleep(interval).await;
            return answer(stream, 200, "slow").await;
        }
        "/slow-headers" => {
            let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Slow: 1\r\n\r\nok";
            drip(stream, bytes, interval).await?;
        }
        "/slow-body" => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n")
                .await?;
            drip(stream, &[b'x'; 50], interval).await?;
        }
        "/endless-headers" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            endless(stream, b"X-Endless: yes\r\n").await?;
        }
        "/endless-body" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            endless(stream, &[b'x'; 4096]).await?;
        }
        "/large-headers" => {
            let mut text = String::from("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n");
            for line in 0..number(query, "kb", 8) {
                text += &format!("X-Large-{line}: {}\r\n", "x".repeat(1010));
            }
            stream.write_all((text + "\r\n").as_bytes()).await?;
            return Ok(true);
        }
        "/large-body" => {
            let length = usize::try_from(number(query, "kb", 64))? * 1024;
            return answer(stream, 200, &"x".repeat(length)).await;
        }
        "/early-close" => {}
        "/reset" => {
            stream.reset_on_close()?;
            // Skips the normal close that follows an answer.
            bail!("reset, as asked");
        }
        "/cut-body" => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
                .await?;
        }
        "/chunked" => {
            let text = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
            stream.write_all(text).await?;
            return Ok(true);
        }
        "/http10" => stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nold").await?,
        "/continue" => {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            return answer(stream, 200, "ok").await;
        }
        "/garbage" => {
            stream
                .write_all(b"\x00\x01\x02 this is no HTTP\r\n\r\n")
                .await?
        }
        _ if path.starts_with("/redirect/") => return redirect(stream, path, query).await,
        "/echo" => return answer(stream, 200, head).await,
        _ => return answer(stream, 200, "ok").await,
    }
    Ok(false)
}

async fn answer(stream: &mut impl Stream, status: u16, body: &str) -> Result<bool> {
    // These statuses have no body, and a length would confuse the client.
    let text = if status == 204 || status == 304 {
        format!("HTTP/1.1 {status} Chosen\r\nX-App: testbed\r\n\r\n")
    } else {
        format!(
            "HTTP/1.1 {status} Chosen\r\nX-App: testbed\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    stream.write_all(text.as_bytes()).await?;
    Ok(true)
}

async fn redirect(stream: &mut impl Stream, path: &str, query: &str) -> Result<bool> {
    let own = stream.local()?;
    let port = u16::try_from(number(query, "port", own.port().into()))?;
    let to = SocketAddr::new(own.ip(), port);
    let location = match path.trim_start_matches("/redirect/") {
        "none" => None,
        "failing" => Some("/failing".to_owned()),
        "loop" => Some("/redirect/loop".to_owned()),
        "other" => Some("http://other.example/healthy".to_owned()),
        "relative" => Some("../healthy?relative=yes#part".to_owned()),
        "absolute" => Some(format!("http://{to}/healthy")),
        "https" => Some(format!("https://{to}/healthy")),
        "long" => {
            let kib = number(query, "kb", 15);
            let length = usize::try_from(kib)? * 1024;
            let way = format!("/redirect/long?kb={kib}&pad=");
            Some(format!(
                "{way}{}",
                "%7e".repeat(length.saturating_sub(way.len()) / 3)
            ))
        }
        "bad" => Some("http://[bad/healthy".to_owned()),
        "ftp" => Some(format!("ftp://{to}/healthy")),
        _ => Some("/healthy".to_owned()),
    };
    let location = location
        .map(|to| format!("Location: {to}\r\n"))
        .unwrap_or_default();
    let status = number(query, "status", 302);
    let text = format!("HTTP/1.1 {status} Moved\r\n{location}Content-Length: 0\r\n\r\n");
    stream.write_all(text.as_bytes()).await?;
    Ok(true)
}

async fn drip(stream: &mut impl Stream, bytes: &[u8], interval: Duration) -> Result<()> {
    for byte in bytes {
        stream.write_all(std::slice::from_ref(byte)).await?;
        stream.flush().await?;
        tokio::time::sleep(interval).await;
    }
    Ok(())
}

/// Writes until the client closes, which is an error.
async fn endless(stream: &mut impl Stream, piece: &[u8]) -> Result<()> {
    loop {
        stream.write_all(piece).await?;
    }
}
