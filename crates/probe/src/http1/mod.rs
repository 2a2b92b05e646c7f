//! Parses an HTTP/1 response without I/O: the caller feeds bytes and gets the status.
//!
//! As strict and as lenient as Go's net/http client (response.go, transfer.go), with which the kubelet itself
//! would read it, except for the limits on its size.

use std::mem::MaybeUninit;

use thiserror::Error;

use self::chunked::Chunked;
use super::redirect::is_redirect;
use super::{BODY_LIMIT, HEAD_LIMIT};

mod chunked;
#[cfg(test)]
mod tests;

/// Maximum number of headers (or trailers) in one head. An app that sends more than this is broken; 16 KiB
/// would have room for 5,461.
const HEADERS_LIMIT: usize = 512;

/// The parts of a response head that the check needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Status code, 100 to 999.
    pub status: u16,
    /// The first `Location`, if there is one and it is not empty.
    pub location: Option<Vec<u8>>,
    /// Whether a Content-Length above [`BODY_LIMIT`] is announced. The kubelet does not read such a body of a lifecycle
    /// hook's answer (kubernetes pkg/kubelet/lifecycle/handlers.go, `discardHTTPRespBody`).
    pub has_long_body: bool,
}

impl ResponseHead {
    /// Whether it is a redirect that Go's client would consider. That client ignores the body of one.
    pub fn leads_on(&self) -> bool {
        is_redirect(self.status) && self.location.is_some()
    }
}

/// Why there is no complete response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ResponseError {
    /// The bytes are not a valid HTTP/1 response.
    #[error("invalid HTTP response: {0}")]
    Malformed(&'static str),
    /// Status line and headers, interim responses included, are too long.
    #[error("more than {HEAD_LIMIT} bytes of headers, or more than {HEADERS_LIMIT} headers")]
    HeadTooLarge,
    /// The stream ended before the response did.
    #[error("the app closed the connection before its answer was complete")]
    CutShort,
}

/// What marks the end of the body.
#[derive(Debug)]
enum Framing {
    /// `Content-Length`, or no body: this many bytes are left.
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

/// Reads one response.
#[derive(Debug)]
pub struct ResponseReader {
    /// The part of the current head received so far.
    buffer: Vec<u8>,
    /// Bytes of interim responses before the current head.
    interim: usize,
    /// The final head and the body's framing, once the head is complete.
    response: Option<(ResponseHead, Framing)>,
    /// How many more bytes of the body to read.
    budget: usize,
}

impl Default for ResponseReader {
    fn default() -> Self {
        Self {
            buffer: Vec::new(),
            interim: 0,
            response: None,
            budget: BODY_LIMIT,
        }
    }
}

impl ResponseReader {
    /// Parses `bytes` from the stream. Returns true once no more are needed: the response is complete, or as
    /// much of its body was read as the kubelet reads.
    ///
    /// # Errors
    /// The bytes are not a response that Go's client would accept.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<bool, ResponseError> {
        if let Some((_, framing)) = &mut self.response {
            return framing.feed(bytes, &mut self.budget);
        }
        self.buffer.extend_from_slice(bytes);
        while let Some((length, head, mut framing)) = parse_head(&self.buffer)? {
            if self.interim + length > HEAD_LIMIT {
                return Err(ResponseError::HeadTooLarge);
            }
            // Interim responses are skipped. 101 is final, because the request has no Upgrade.
            if head.status < 200 && head.status != 101 {
                let _ = self.buffer.drain(..length);
                self.interim += length;
                continue;
            }
            let done = framing.feed(&self.buffer[length..], &mut self.budget);
            self.response = Some((head, framing));
            self.buffer = Vec::new();
            return done;
        }
        if self.interim + self.buffer.len() > HEAD_LIMIT {
            return Err(ResponseError::HeadTooLarge);
        }
        Ok(false)
    }

    /// Reports that the stream has ended.
    ///
    /// # Errors
    /// [`ResponseError::CutShort`] if the response is incomplete.
    pub fn end(&self) -> Result<(), ResponseError> {
        match &self.response {
            Some((_, Framing::UntilClose)) => Ok(()),
            _ => Err(ResponseError::CutShort),
        }
    }

    /// The final head, once it is complete; the body may still be incomplete.
    pub fn head(&self) -> Option<&ResponseHead> {
        self.response.as_ref().map(|(head, _)| head)
    }

    /// Like [`Self::head`], by value.
    pub fn into_head(self) -> Option<ResponseHead> {
        self.response.map(|(head, _)| head)
    }
}

impl Framing {
    fn feed(&mut self, bytes: &[u8], budget: &mut usize) -> Result<bool, ResponseError> {
        match self {
            Self::Chunked(chunked) => chunked.feed(bytes, budget),
            Self::Length(left) => {
                *left = left.saturating_sub(bytes.len() as u64);
                *budget = budget.saturating_sub(bytes.len());
                Ok(*left == 0 || *budget == 0)
            }
            Self::UntilClose => {
                *budget = budget.saturating_sub(bytes.len());
                Ok(*budget == 0)
            }
        }
    }
}

/// The head at the beginning of `buffer`, with its length and the body's framing, once it is complete.
fn parse_head(buffer: &[u8]) -> Result<Option<(usize, ResponseHead, Framing)>, ResponseError> {
    // httparse would skip empty lines; Go does not.
    if matches!(buffer.first(), Some(b'\r' | b'\n')) {
        return Err(ResponseError::Malformed("empty status line"));
    }
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_LIMIT];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default()
        .allow_multiple_spaces_in_response_status_delimiters(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        // Headers whose name contains a space: see `check_lines`.
        .ignore_invalid_headers_in_responses(true)
        .parse_response_with_uninit_headers(&mut response, buffer, &mut headers);
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(ResponseError::HeadTooLarge),
        Err(httparse::Error::Status) => return Err(ResponseError::Malformed("bad status line")),
        Err(httparse::Error::Version) => return Err(ResponseError::Malformed("bad version")),
        Err(_) => return Err(ResponseError::Malformed("bad header")),
    };
    let headers = buffer[..length].iter().position(|&byte| byte == b'\n');
    check_lines(&buffer[headers.map_or(length, |end| end + 1)..length])?;
    let status = response.code.unwrap_or_default();
    if status < 100 {
        return Err(ResponseError::Malformed("bad status code"));
    }
    let location = values(response.headers, "location")
        .next()
        .filter(|value| !value.is_empty())
        .map(<[u8]>::to_vec);
    let framing = framing(status, response.version.unwrap_or(1), response.headers)?;
    let has_long_body = matches!(framing, Framing::Length(length) if length > BODY_LIMIT as u64);
    let head = ResponseHead {
        status,
        location,
        has_long_body,
    };
    Ok(Some((length, head, framing)))
}

/// Checks that Go would accept these header lines (its net/textproto `readMIMEHeader`). A name may contain spaces;
/// such a header is ignored.
fn check_lines(lines: &[u8]) -> Result<(), ResponseError> {
    const BAD: ResponseError = ResponseError::Malformed("bad header");
    let mut lines = lines.split(|&byte| byte == b'\n').peekable();
    // The first line must not be a continuation line.
    if matches!(lines.peek(), Some([b' ' | b'\t', ..])) {
        return Err(BAD);
    }
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let value = match line {
            [] => continue,
            [b' ' | b'\t', ..] => line,
            _ => {
                let colon = line.iter().position(|&byte| byte == b':').ok_or(BAD)?;
                let (name, value) = line.split_at(colon);
                let is_name = |&byte: &u8| byte == b' ' || is_token(byte);
                if name.is_empty() || !name.iter().all(is_name) {
                    return Err(BAD);
                }
                value
            }
        };
        if value
            .iter()
            .any(|&byte| byte.is_ascii_control() && byte != b'\t')
        {
            return Err(BAD);
        }
    }
    Ok(())
}

/// Whether `byte` may occur in a token (RFC 9110, 5.6.2).
pub(crate) const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

/// How the body is framed (Go's `readTransfer`, `parseTransferEncoding` and `fixLength`).
fn framing(
    status: u16,
    minor_version: u8,
    headers: &[httparse::Header<'_>],
) -> Result<Framing, ResponseError> {
    let mut codings = values(headers, "transfer-encoding");
    let chunked = match (minor_version, codings.next(), codings.next()) {
        (0, ..) | (_, None, _) => false,
        (_, Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => true,
        _ => return Err(ResponseError::Malformed("bad transfer coding")),
    };
    let mut lengths = values(headers, "content-length");
    let length = lengths.next();
    if length.is_some_and(|length| lengths.any(|other| other != length)) {
        return Err(ResponseError::Malformed("conflicting content lengths"));
    }
    Ok(match (status, length) {
        (100..200 | 204 | 304, _) => Framing::Length(0),
        _ if chunked => Framing::Chunked(Chunked::new()),
        (_, Some(length)) => Framing::Length(content_length(length)?),
        (_, None) => Framing::UntilClose,
    })
}

fn content_length(value: &[u8]) -> Result<u64, ResponseError> {
    std::str::from_utf8(value)
        .ok()
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse::<i64>().ok())
        .and_then(|length| u64::try_from(length).ok())
        .ok_or(ResponseError::Malformed("bad content length"))
}

/// The trimmed values of header `name`, in order.
fn values<'a>(
    headers: &'a [httparse::Header<'a>],
    name: &'static str,
) -> impl Iterator<Item = &'a [u8]> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| header.value.trim_ascii())
}
