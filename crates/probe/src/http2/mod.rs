//! HTTP/2 to an app: one connection with one request, as strict and as lenient as Go's golang.org/x/net/http2, with which
//! the kubelet itself would read the answer. A library for general use refuses answers that Go accepts, such as those with
//! `connection: keep-alive`.

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use self::hpack::Decoder;
pub(super) use self::hpack::Field;
use super::limited::Limited;
use super::verdict::Reason;
use super::{Finding, HEAD_LIMIT, WIRE_LIMIT};

mod get;
mod hpack;
mod huffman;
#[cfg(test)]
mod recorded;

pub(super) use self::get::get;

/// What a client sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The initial window, and the longest frame, of both sides (RFC 9113, 6.5.2). The window also bounds what an app can make
/// this process buffer; no more of an answer is read. Bytes.
const WINDOW: i64 = 65_535;
const FRAME_LIMIT: usize = 16_384;
/// The stream of the only request.
const STREAM: u32 = 1;

/// Frame types (RFC 9113, 6).
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const PRIORITY: u8 = 2;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PUSH_PROMISE: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

/// Flags of frames. `ACK` and `END_STREAM` have the same bit.
mod flag {
    pub(super) const ACK: u8 = 1;
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    pub(super) const PADDED: u8 = 8;
    pub(super) const PRIORITY: u8 = 32;
}

/// Settings (RFC 9113, 6.5.2).
mod setting {
    pub(super) const ENABLE_PUSH: u16 = 2;
    pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(super) const MAX_FRAME_SIZE: u16 = 5;
    pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// Names of error codes (RFC 9113, 7).
const CODES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

/// Why there is no complete answer. Contains no text from the app.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Error {
    /// The connection ended or failed.
    #[error("{0}")]
    Closed(String),
    /// The app reset the request.
    #[error("the app reset the request: {0}")]
    Reset(&'static str),
    /// The app is closing the connection and does not answer the request.
    #[error("the app does not answer the request (GOAWAY): {0}")]
    GoAway(&'static str),
    /// The app violates the protocol.
    #[error("invalid HTTP/2 answer: {0}")]
    Protocol(&'static str),
    /// The head of the answer is too long.
    #[error("more than {HEAD_LIMIT} bytes of headers")]
    HeadTooLarge,
}

impl Error {
    /// The finding of a check without an answer.
    pub(super) fn into_finding(self) -> Finding {
        let reason = match self {
            Self::Closed(_) | Self::Reset(_) | Self::GoAway(_) => Reason::ConnectionClosed,
            Self::Protocol(_) | Self::HeadTooLarge => Reason::BadResponse,
        };
        Finding::without_answer(reason, self.to_string())
    }
}

/// A part of the answer.
#[derive(Debug)]
pub(super) enum Part {
    /// A head, or trailers, and whether the answer ends with it.
    Head(Vec<Field>, bool),
    /// A piece of the body, and whether the answer ends with it.
    Data(Vec<u8>, bool),
    /// A request that the app pushes, which it must not do.
    Push,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The payload without padding and priority.
    fn content(&self) -> Result<&[u8], Error> {
        const BAD: Error = Error::Protocol("bad padding");
        let mut content = self.payload.as_slice();
        let mut padding = 0;
        if self.has(flag::PADDED) {
            let (&length, rest) = content.split_first().ok_or(BAD)?;
            (padding, content) = (usize::from(length), rest);
        }
        if self.kind == kind::HEADERS && self.has(flag::PRIORITY) {
            content = content.get(5..).ok_or(BAD)?;
        }
        let end = content.len().checked_sub(padding).ok_or(BAD)?;
        Ok(&content[..end])
    }

    /// The payload's 32-bit number, which must be all of it.
    fn number(&self) -> Result<u32, Error> {
        let payload = self.payload.as_slice().try_into();
        payload
            .map(u32::from_be_bytes)
            .map_err(|_| Error::Protocol("bad frame length"))
    }
}

/// One connection.
pub(super) struct Connection<S> {
    stream: Limited<S>,
    /// What was read and is not parsed yet.
    buffer: Vec<u8>,
    decoder: Decoder,
    /// Whether the app has sent its first SETTINGS.
    has_settings: bool,
    max_streams: Option<u32>,
    /// Longest head that the app accepts, as it counts. Bytes.
    max_head: Option<u32>,
    /// What the app accepts on the stream and on the connection, and its initial window. Bytes.
    windows: [i64; 2],
    initial_window: i64,
    /// What is not sent yet of the request's body.
    body: Vec<u8>,
    has_head: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Begins HTTP/2 on `stream`.
    pub(super) async fn open(stream: S) -> Self {
        let mut connection = Self {
            stream: Limited::new(stream, WIRE_LIMIT),
            buffer: Vec::new(),
            decoder: Decoder::default(),
            has_settings: false,
            max_streams: None,
            max_head: None,
            windows: [WINDOW; 2],
            initial_window: WINDOW,
            body: Vec::new(),
            has_head: false,
        };
        let mut settings = Vec::new();
        for (id, value) in [
            (setting::ENABLE_PUSH, 0),
            (setting::MAX_HEADER_LIST_SIZE, HEAD_LIMIT as u32),
        ] {
            settings.extend_from_slice(&id.to_be_bytes());
            settings.extend_from_slice(&value.to_be_bytes());
        }
        let mut bytes = PREFACE.to_vec();
        push_frame(&mut bytes, kind::SETTINGS, 0, 0, &settings);
        connection.send(&bytes).await;
        connection
    }

    /// Waits for the app's SETTINGS, and until they allow a request.
    ///
    /// # Errors
    /// The connection ended, or the app does not speak HTTP/2.
    pub(super) async fn ready(&mut self) -> Result<(), Error> {
        while !self.has_settings || self.max_streams == Some(0) {
            let _none = self.step().await?;
        }
        Ok(())
    }

    /// Whether the app accepts a head with these fields; it may do so until it sends its SETTINGS.
    pub(super) fn accepts(&self, fields: &[Field]) -> bool {
        let size: usize = fields
            .iter()
            .map(|(name, value)| name.len() + value.len() + 32)
            .sum();
        self.max_head.is_none_or(|max| size <= max as usize)
    }

    /// Sends the request. Call it once. An app may answer and close the connection before it has read the request, so an
    /// error shows only in [`Self::next`].
    pub(super) async fn request(&mut self, fields: &[Field], body: Vec<u8>) {
        let mut block = Vec::new();
        for (name, value) in fields {
            hpack::encode(&mut block, name, value);
        }
        let mut bytes = Vec::new();
        let last = block.len().div_ceil(FRAME_LIMIT).saturating_sub(1);
        for (index, part) in block.chunks(FRAME_LIMIT).enumerate() {
            let kind = if index == 0 {
                kind::HEADERS
            } else {
                kind::CONTINUATION
            };
            let mut flags = if index == last { flag::END_HEADERS } else { 0 };
            if index == 0 && body.is_empty() {
                flags |= flag::END_STREAM;
            }
            push_frame(&mut bytes, kind, flags, STREAM, part);
        }
        self.body = body;
        self.push_body(&mut bytes);
        self.send(&bytes).await;
    }

    /// The next part of the answer.
    ///
    /// # Errors
    /// The connection ended, the app reset the request, or it violates the protocol.
    pub(super) async fn next(&mut self) -> Result<Part, Error> {
        loop {
            if let Some(part) = self.step().await? {
                return Ok(part);
            }
        }
    }

    /// Sends as much of the body as the app accepts.
    fn push_body(&mut self, bytes: &mut Vec<u8>) {
        while !self.body.is_empty() {
            let window = self.windows[0].min(self.windows[1]).max(0);
            let length = self.body.len().min(FRAME_LIMIT).min(window as usize);
            if length == 0 {
                return;
            }
            self.windows = self.windows.map(|window| window - length as i64);
            let part: Vec<u8> = self.body.drain(..length).collect();
            let flags = if self.body.is_empty() {
                flag::END_STREAM
            } else {
                0
            };
            push_frame(bytes, kind::DATA, flags, STREAM, &part);
        }
    }

    /// Reads and handles one frame.
    async fn step(&mut self) -> Result<Option<Part>, Error> {
        const STRAY: Error = Error::Protocol("frame on the wrong stream");
        let frame = self.read_frame().await?;
        if !self.has_settings && frame.kind != kind::SETTINGS {
            return Err(Error::Protocol("the app does not begin with SETTINGS"));
        }
        let ended = frame.has(flag::END_STREAM);
        let is_connections = matches!(frame.kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
        let is_streams = !is_connections && frame.kind <= kind::CONTINUATION;
        if is_connections && frame.stream != 0
            || is_streams && frame.stream == 0 && frame.kind != kind::WINDOW_UPDATE
        {
            return Err(STRAY);
        }
        match frame.kind {
            kind::DATA if frame.stream != STREAM => return Err(STRAY),
            kind::DATA => return Ok(Some(Part::Data(frame.content()?.to_vec(), ended))),
            kind::HEADERS => {
                let stream = frame.stream;
                let fields = self.read_head(frame).await?;
                if stream == STREAM {
                    check(&fields)?;
                    self.has_head = true;
                    return Ok(Some(Part::Head(fields, ended)));
                }
            }
            kind::RST_STREAM => {
                let code = frame.number()?;
                if frame.stream == STREAM {
                    return Err(Error::Reset(name_of(code)));
                }
            }
            kind::PRIORITY if frame.payload.len() != 5 => {
                return Err(Error::Protocol("bad frame length"));
            }
            kind::SETTINGS => self.settings(&frame).await?,
            kind::PING if frame.payload.len() != 8 => {
                return Err(Error::Protocol("bad frame length"));
            }
            kind::PING if !frame.has(flag::ACK) => {
                let mut bytes = Vec::new();
                push_frame(&mut bytes, kind::PING, flag::ACK, 0, &frame.payload);
                self.send(&bytes).await;
            }
            kind::GOAWAY => {
                let [last, code] =
                    two(&frame.payload).ok_or(Error::Protocol("bad frame length"))?;
                if last & i32::MAX as u32 == 0 && !self.has_head {
                    return Err(Error::GoAway(name_of(code)));
                }
            }
            kind::WINDOW_UPDATE => self.window_update(&frame).await?,
            kind::PUSH_PROMISE => return Ok(Some(Part::Push)),
            kind::CONTINUATION => return Err(Error::Protocol("unexpected CONTINUATION")),
            _ => {}
        }
        Ok(None)
    }

    /// The fields of a head that begins with `frame` and goes on in further ones.
    async fn read_head(&mut self, mut frame: Frame) -> Result<Vec<Field>, Error> {
        let mut block = frame.content()?.to_vec();
        let stream = frame.stream;
        while !frame.has(flag::END_HEADERS) {
            frame = self.read_frame().await?;
            if (frame.kind, frame.stream) != (kind::CONTINUATION, stream) {
                return Err(Error::Protocol("unfinished head"));
            }
            block.extend_from_slice(&frame.payload);
        }
        self.decoder.decode(&block)
    }

    async fn settings(&mut self, frame: &Frame) -> Result<(), Error> {
        const BAD: Error = Error::Protocol("bad SETTINGS");
        self.has_settings = true;
        let (settings, rest) = frame.payload.as_chunks::<6>();
        if !rest.is_empty() || frame.has(flag::ACK) && !settings.is_empty() {
            return Err(BAD);
        }
        if frame.has(flag::ACK) {
            return Ok(());
        }
        for &[high, low, ref value @ ..] in settings {
            let value = u32::from_be_bytes(*value);
            match u16::from_be_bytes([high, low]) {
                setting::ENABLE_PUSH if value > 1 => return Err(BAD),
                setting::MAX_CONCURRENT_STREAMS => self.max_streams = Some(value),
                setting::INITIAL_WINDOW_SIZE if value > i32::MAX as u32 => return Err(BAD),
                setting::INITIAL_WINDOW_SIZE => {
                    let value = i64::from(value);
                    self.windows[0] += value - self.initial_window;
                    self.initial_window = value;
                }
                setting::MAX_FRAME_SIZE if !(16_384..1 << 24).contains(&value) => return Err(BAD),
                setting::MAX_HEADER_LIST_SIZE => self.max_head = Some(value),
                _ => {}
            }
        }
        let mut bytes = Vec::new();
        push_frame(&mut bytes, kind::SETTINGS, flag::ACK, 0, &[]);
        self.push_body(&mut bytes);
        self.send(&bytes).await;
        Ok(())
    }

    async fn window_update(&mut self, frame: &Frame) -> Result<(), Error> {
        let increment = i64::from(frame.number()? & i32::MAX as u32);
        let window = match frame.stream {
            STREAM => 0,
            0 => 1,
            _ => return Ok(()),
        };
        self.windows[window] += increment;
        if increment == 0 || self.windows[window] > i64::from(i32::MAX) {
            return Err(Error::Protocol("bad WINDOW_UPDATE"));
        }
        let mut bytes = Vec::new();
        self.push_body(&mut bytes);
        self.send(&bytes).await;
        Ok(())
    }

    async fn read_frame(&mut self) -> Result<Frame, Error> {
        let header = self.read(9).await?;
        let &[a, b, c, kind, flags, ref stream @ ..] = header.as_slice() else {
            return Err(Error::Protocol("bad frame"));
        };
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if length > FRAME_LIMIT {
            return Err(Error::Protocol("frame too long, or not HTTP/2"));
        }
        let stream = <[u8; 4]>::try_from(stream).map(u32::from_be_bytes);
        Ok(Frame {
            kind,
            flags,
            stream: stream.unwrap_or_default() & i32::MAX as u32,
            payload: self.read(length).await?,
        })
    }

    /// The next `length` bytes.
    async fn read(&mut self, length: usize) -> Result<Vec<u8>, Error> {
        while self.buffer.len() < length {
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(1..) => {}
                Ok(0) => {
                    let early = "the app closed the connection before its answer was complete";
                    return Err(Error::Closed(early.to_owned()));
                }
                Err(error) => return Err(Error::Closed(error.to_string())),
            }
        }
        Ok(self.buffer.drain(..length).collect())
    }

    /// Sends `bytes`. An error shows in the next read.
    async fn send(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() && self.stream.write_all(bytes).await.is_ok() {
            let _ = self.stream.flush().await;
        }
    }
}

/// Appends a frame to `bytes`.
fn push_frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// The two 32-bit numbers at the beginning of `payload`.
fn two(payload: &[u8]) -> Option<[u32; 2]> {
    let (first, rest) = payload.split_first_chunk()?;
    let second = rest.first_chunk()?;
    Some([u32::from_be_bytes(*first), u32::from_be_bytes(*second)])
}

fn name_of(code: u32) -> &'static str {
    let name = usize::try_from(code).ok().and_then(|code| CODES.get(code));
    name.copied().unwrap_or("unknown error code")
}

/// Checks the fields of a head or trailers as Go does (x/net/http2 `readMetaFrame` and `checkPseudos`). It accepts
/// connection-specific ones.
fn check(fields: &[Field]) -> Result<(), Error> {
    let mut has_status = false;
    let mut has_regular = false;
    for (name, value) in fields {
        if value
            .iter()
            .any(|&byte| byte.is_ascii_control() && byte != b'\t')
        {
            return Err(Error::Protocol("invalid header value"));
        }
        if name.starts_with(b":") {
            if name != b":status" || has_status || has_regular {
                return Err(Error::Protocol("invalid pseudo-header"));
            }
            has_status = true;
        } else {
            let is_valid = |&byte: &u8| crate::http1::is_token(byte) && !byte.is_ascii_uppercase();
            if name.is_empty() || !name.iter().all(is_valid) {
                return Err(Error::Protocol("invalid header name"));
            }
            has_regular = true;
        }
    }
    Ok(())
}

/// The first value of field `name`.
pub(super) fn value<'a>(fields: &'a [Field], name: &str) -> Option<&'a [u8]> {
    values(fields, name).next()
}

/// The values of field `name`, in order.
pub(super) fn values<'a>(fields: &'a [Field], name: &str) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |(other, _)| other == name.as_bytes())
        .map(|(_, value)| value.as_slice())
}
