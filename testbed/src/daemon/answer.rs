//! Sends a request to the daemon's admin server and parses the response.

use std::io::{Read, Write};

use anyhow::{Context, Result};

/// Requests `path` on `stream`; returns status and body.
///
/// # Errors
/// When the response is incomplete.
pub fn ask(mut stream: impl Read + Write, path: &str, accept: &str) -> Result<(u16, String)> {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: admin\r\nAccept: {accept}\r\n\
         Connection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .context("reading the admin server's response")?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the response has no end of headers")?;
    let status = head
        .split(' ')
        .nth(1)
        .context("the response has no status")?;
    let body = match head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        true => unchunk(body),
        false => body.to_owned(),
    };
    Ok((status.parse()?, body))
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or_default();
        let Some(piece) = rest.get(..size).filter(|_| size > 0) else {
            break;
        };
        text += piece;
        body = rest
            .get(size..)
            .unwrap_or_default()
            .trim_start_matches("\r\n");
    }
    text
}
