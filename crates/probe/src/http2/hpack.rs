//! Header compression of HTTP/2 (RFC 7541). Headers are sent uncompressed; what is received is decoded as in Go's
//! golang.org/x/net/http2/hpack.

use std::collections::VecDeque;

use super::Error;
use super::huffman;
use crate::HEAD_LIMIT;

/// The size of the dynamic table that an app may use: the protocol's default. Bytes.
const TABLE_LIMIT: usize = 4096;
/// Size of a header in the table besides its name and value (RFC 7541, 4.1). Bytes.
const ENTRY: usize = 32;

/// What a header counts besides its name and value towards [`HEAD_LIMIT`]: as much as in HTTP/1. Bytes.
const LINE: usize = 4;

/// Names and values with fixed indices, from 1 (RFC 7541, appendix A).
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""),
    ("cache-control", ""), ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""),
    ("content-length", ""), ("content-location", ""), ("content-range", ""), ("content-type", ""),
    ("cookie", ""), ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""),
    ("if-match", ""), ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""),
    ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""), ("max-forwards", ""),
    ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""), ("referer", ""), ("refresh", ""),
    ("retry-after", ""), ("server", ""), ("set-cookie", ""), ("strict-transport-security", ""),
    ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""), ("www-authenticate", ""),
];

/// Name and value of a header.
pub(crate) type Field = (Vec<u8>, Vec<u8>);

const BAD: Error = Error::Protocol("invalid header compression");

/// Appends a header to `block`, uncompressed and not to be indexed.
pub(super) fn encode(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0);
    for text in [name, value] {
        encode_integer(block, text.len());
        block.extend_from_slice(text);
    }
}

/// An integer with a prefix of 7 bits, whose first bit is 0.
fn encode_integer(block: &mut Vec<u8>, mut value: usize) {
    const PREFIX: u8 = 127;
    if value < usize::from(PREFIX) {
        block.push(value as u8);
        return;
    }
    block.push(PREFIX);
    value -= usize::from(PREFIX);
    while value >= 128 {
        block.push(value as u8 | 128);
        value >>= 7;
    }
    block.push(value as u8);
}

/// Decodes the header blocks of a connection.
#[derive(Default)]
pub(super) struct Decoder {
    /// The latest entry first.
    table: VecDeque<Field>,
    size: usize,
    /// The size to which the app has limited the table; `None`: [`TABLE_LIMIT`].
    limit: Option<usize>,
}

impl Decoder {
    /// The headers in `block`.
    ///
    /// # Errors
    /// The block is invalid, or has more than [`HEAD_LIMIT`] bytes of headers.
    pub(super) fn decode(&mut self, mut block: &[u8]) -> Result<Vec<Field>, Error> {
        let mut fields = Vec::new();
        let mut size = 0;
        while let Some(&first) = block.first() {
            let field = match first {
                128.. => self.entry(integer(&mut block, 7)?)?,
                64.. => {
                    let field = self.literal(&mut block, 6)?;
                    self.insert(field.clone());
                    field
                }
                32.. => {
                    let limit = integer(&mut block, 5)?;
                    if limit > TABLE_LIMIT || !fields.is_empty() {
                        return Err(BAD);
                    }
                    self.limit = Some(limit);
                    self.evict();
                    continue;
                }
                _ => self.literal(&mut block, 4)?,
            };
            size += field.0.len() + field.1.len() + LINE;
            if size > HEAD_LIMIT {
                return Err(Error::HeadTooLarge);
            }
            fields.push(field);
        }
        Ok(fields)
    }

    /// A header whose name has an index with a prefix of `bits`, or is literal, and whose value is literal.
    fn literal(&self, block: &mut &[u8], bits: u32) -> Result<Field, Error> {
        let name = match integer(block, bits)? {
            0 => string(block)?,
            index => self.entry(index)?.0,
        };
        Ok((name, string(block)?))
    }

    fn entry(&self, index: usize) -> Result<Field, Error> {
        let index = index.checked_sub(1).ok_or(BAD)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Ok((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        }
        self.table.get(index - STATIC.len()).cloned().ok_or(BAD)
    }

    fn insert(&mut self, field: Field) {
        self.size += field.0.len() + field.1.len() + ENTRY;
        self.table.push_front(field);
        self.evict();
    }

    fn evict(&mut self) {
        while self.size > self.limit.unwrap_or(TABLE_LIMIT)
            && let Some((name, value)) = self.table.pop_back()
        {
            self.size -= name.len() + value.len() + ENTRY;
        }
    }
}

/// An integer with a prefix of `bits` (RFC 7541, 5.1).
fn integer(block: &mut &[u8], bits: u32) -> Result<usize, Error> {
    let mut next = || {
        let (&first, rest) = block.split_first().ok_or(BAD)?;
        *block = rest;
        Ok(usize::from(first))
    };
    let mask = (1 << bits) - 1;
    let mut value = next()? & mask;
    if value < mask {
        return Ok(value);
    }
    // Nothing in a block of this size needs more than four bytes.
    for shift in [0, 7, 14, 21] {
        let byte = next()?;
        value += (byte & 127) << shift;
        if byte < 128 {
            return Ok(value);
        }
    }
    Err(BAD)
}

/// A string (RFC 7541, 5.2).
fn string(block: &mut &[u8]) -> Result<Vec<u8>, Error> {
    let is_coded = block.first().is_some_and(|&first| first >= 128);
    let length = integer(block, 7)?;
    let (text, rest) = block.split_at_checked(length).ok_or(BAD)?;
    *block = rest;
    if is_coded {
        huffman::decode(text).ok_or(BAD)
    } else {
        Ok(text.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(fields: Vec<Field>) -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        fields
            .iter()
            .map(|(name, value)| format!("{}={}", text(name), text(value)))
            .collect()
    }

    /// RFC 7541, C.6, whose table holds 256 bytes: the first answer, then the next ones with what they repeat.
    #[test]
    fn the_answers_of_the_rfc_are_decoded() {
        let mut decoder = Decoder::default();
        let mut block = vec![0x3f, 0xe1, 0x01];
        block.extend(*b"\x48\x82\x64\x02\x58\x85\xae\xc3\x77\x1a\x4b\x61\x96\xd0\x7a\xbe\x94\x10\x54\xd4\x44\xa8\x20\x05\x95");
        block.extend(*b"\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff\x6e\x91\x9d\x29\xad\x17\x18\x63\xc7\x8f\x0b\x97\xc8\xe9\xae\x82");
        block.extend(*b"\xae\x43\xd3");
        let common = [
            "cache-control=private",
            "date=Mon, 21 Oct 2013 20:13:21 GMT",
            "location=https://www.example.com",
        ];
        let first = text(decoder.decode(&block).expect("valid"));
        assert_eq!(first[0], ":status=302");
        assert_eq!(first[1..], common);
        let second = decoder
            .decode(b"\x48\x83\x64\x0e\xff\xc1\xc0\xbf")
            .expect("valid");
        let second = text(second);
        assert_eq!(second[0], ":status=307");
        assert_eq!(second[1..], common);
        assert_eq!(decoder.size, 222);
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let value = vec![b'v'; 300];
        let mut block = Vec::new();
        encode(&mut block, b"name", &value);
        encode(&mut block, b"x", b"");
        let fields = Decoder::default().decode(&block).expect("valid");
        assert_eq!(
            fields,
            [(b"name".to_vec(), value), (b"x".to_vec(), Vec::new())]
        );
    }

    #[test]
    fn invalid_blocks_are_refused_and_small_ones_do_not_grow_without_limit() {
        for block in [
            &b"\x80"[..],
            b"\xff\xff\xff\xff\xff\xff",
            b"\xbe",
            b"\x40\x05ab",
            b"\x3f\xe2\x1f",
            b"\x88\x20",
            b"\x00\x81\x00\x00",
        ] {
            assert_eq!(Decoder::default().decode(block), Err(BAD), "{block:x?}");
        }
        let mut bomb = vec![0x40, 1, b'x', 0x7f, 0x81, 0x1e];
        bomb.resize(bomb.len() + 4000, b'y');
        bomb.resize(bomb.len() + 1000, 0xbe);
        assert_eq!(Decoder::default().decode(&bomb), Err(Error::HeadTooLarge));
    }

    #[test]
    fn any_block_is_decoded_without_a_panic() {
        proptest::proptest!(|(blocks: Vec<Vec<u8>>)| {
            let mut decoder = Decoder::default();
            for block in blocks {
                let _fields = decoder.decode(&block);
                proptest::prop_assert!(decoder.size <= TABLE_LIMIT);
            }
        });
    }
}
