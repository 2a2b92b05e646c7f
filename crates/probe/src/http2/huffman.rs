//! The Huffman code of HPACK (RFC 7541, 5.2 and appendix B).

use std::sync::LazyLock;

/// Longest code. Bits.
const LONGEST: usize = 30;

/// Length of each byte's code. The code is canonical: codes are assigned in the order of length, then of value. The end of
/// the string, 256, has the last one.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// The codes of one length: they are consecutive.
#[derive(Clone, Copy, Default)]
struct Codes {
    first: u32,
    count: u32,
    /// Where its bytes are in [`Table::bytes`].
    begin: usize,
}

struct Table {
    lengths: [Codes; LONGEST + 1],
    /// All bytes in the order of their codes.
    bytes: Vec<u8>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table {
        lengths: [Codes::default(); LONGEST + 1],
        bytes: Vec::with_capacity(256),
    };
    let mut next = 0;
    for (length, codes) in table.lengths.iter_mut().enumerate() {
        next <<= 1;
        codes.first = next;
        codes.begin = table.bytes.len();
        let bytes = (0..=u8::MAX).filter(|&byte| usize::from(LENGTHS[usize::from(byte)]) == length);
        table.bytes.extend(bytes);
        codes.count = u32::try_from(table.bytes.len() - codes.begin).unwrap_or_default();
        next += codes.count;
    }
    table
});

/// The decoded `text`. `None` if it is not a valid code, or its padding is not that of RFC 7541, 5.2.
pub(super) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let table = &*TABLE;
    let mut decoded = Vec::with_capacity(text.len() * 2);
    let (mut code, mut length) = (0, 0);
    for &byte in text {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            length += 1;
            let codes = table.lengths.get(length)?;
            let index = code
                .checked_sub(codes.first)
                .filter(|&index| index < codes.count);
            if let Some(index) = index {
                decoded.push(
                    *table
                        .bytes
                        .get(codes.begin + usize::try_from(index).ok()?)?,
                );
                (code, length) = (0, 0);
            }
        }
    }
    // The padding is less than a byte, all ones.
    (length < 8 && code == (1 << length) - 1).then_some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_rfc_are_decoded() {
        for (code, text) in [
            (
                &[
                    0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
                ][..],
                "www.example.com",
            ),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x64, 0x02], "302"),
            (&[0xae, 0xc3, 0x77, 0x1a, 0x4b], "private"),
            (&[], ""),
        ] {
            assert_eq!(decode(code).as_deref(), Some(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn padding_and_the_end_of_the_string_are_checked() {
        // A whole byte of padding, padding with zeros, and the code of the end.
        for code in [
            &[0x64, 0x02, 0xff][..],
            &[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xb0],
            &[0xff; 4],
        ] {
            assert_eq!(decode(code), None, "{code:x?}");
        }
    }
}
