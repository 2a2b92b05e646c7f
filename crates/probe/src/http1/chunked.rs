//! Decodes the chunked transfer coding, as strict and as lenient as Go's net/http/internal/chunked.go, with
//! which the kubelet itself would read the answer.

use super::ResponseError;

/// Longest chunk-size line, extensions included. Bytes.
const LINE_LIMIT: usize = 4096;
/// Longest trailer section: as far as Go's 4 KiB reader can look ahead. Bytes.
const TRAILER_LIMIT: usize = 4096;
/// Maximum total size of the framing, beyond 16 bytes plus twice the data for each chunk. Bytes.
const EXCESS_LIMIT: u64 = 16 * 1024;

/// The current position in the coding.
#[derive(Debug)]
enum State {
    /// In the line with the next chunk's size.
    Size,
    /// In a chunk, this many bytes before its end.
    Data(u64),
    /// In the CR LF that ends a chunk.
    DataEnd { seen_cr: bool },
    /// After the last chunk.
    Trailer,
}

/// Reads a chunked body piece by piece.
#[derive(Debug)]
pub(super) struct Chunked {
    state: State,
    /// The unfinished size line or trailer section.
    line: Vec<u8>,
    excess: u64,
}

impl Chunked {
    pub(super) fn new() -> Self {
        Self {
            state: State::Size,
            line: Vec::new(),
            excess: 0,
        }
    }

    /// Decodes `bytes`. Returns true once the body and its trailers are complete, or `budget` (bytes of data
    /// still to read) is used up.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        budget: &mut usize,
    ) -> Result<bool, ResponseError> {
        while let Some((&first, rest)) = bytes.split_first() {
            match self.state {
                State::Size => {
                    bytes = rest;
                    self.line.push(first);
                    if first == b'\n' {
                        self.begin_chunk()?;
                    } else if self.line.len() >= LINE_LIMIT {
                        return Err(ResponseError::Malformed("chunk size line is too long"));
                    }
                }
                State::Data(left) => {
                    let here = left.min(bytes.len() as u64) as usize;
                    if here >= *budget {
                        *budget = 0;
                        return Ok(true);
                    }
                    *budget -= here;
                    bytes = &bytes[here..];
                    let left = left - here as u64;
                    self.state = if left == 0 {
                        State::DataEnd { seen_cr: false }
                    } else {
                        State::Data(left)
                    };
                }
                State::DataEnd { seen_cr } => {
                    bytes = rest;
                    self.state = match (seen_cr, first) {
                        (false, b'\r') => State::DataEnd { seen_cr: true },
                        (true, b'\n') => State::Size,
                        _ => return Err(ResponseError::Malformed("chunk is longer than its size")),
                    };
                }
                State::Trailer => {
                    bytes = rest;
                    self.line.push(first);
                    if self.line == b"\r\n" {
                        return Ok(true);
                    }
                    if self.line.ends_with(b"\r\n\r\n") {
                        return super::check_lines(&self.line).map(|()| true);
                    }
                    if self.line.len() >= TRAILER_LIMIT {
                        return Err(ResponseError::Malformed("trailers are too long"));
                    }
                }
            }
        }
        Ok(false)
    }

    /// Begins the chunk whose size line is now complete.
    fn begin_chunk(&mut self) -> Result<(), ResponseError> {
        let size = chunk_size(&self.line)?;
        self.excess = (self.excess + self.line.len() as u64 + 2)
            .saturating_sub(size.saturating_mul(2).saturating_add(16));
        if self.excess > EXCESS_LIMIT {
            return Err(ResponseError::Malformed("too much chunk framing"));
        }
        self.line.clear();
        self.state = if size == 0 {
            State::Trailer
        } else {
            State::Data(size)
        };
        Ok(())
    }
}

/// The size in a complete size line: hexadecimal digits, an extension, CR LF.
fn chunk_size(line: &[u8]) -> Result<u64, ResponseError> {
    const BAD: ResponseError = ResponseError::Malformed("bad chunk size");
    let line = line.strip_suffix(b"\r\n").ok_or(BAD)?;
    if line.contains(&b'\r') {
        return Err(BAD);
    }
    let line = line.trim_ascii_end();
    let digits = line.split(|&byte| byte == b';').next().unwrap_or_default();
    if digits.is_empty() || digits.len() > 16 {
        return Err(BAD);
    }
    digits.iter().try_fold(0, |size: u64, &digit| {
        let digit = char::from(digit).to_digit(16).ok_or(BAD)?;
        Ok(size << 4 | u64::from(digit))
    })
}
