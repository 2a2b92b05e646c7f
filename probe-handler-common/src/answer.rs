//! Reads the result of a probe from the app's answer as its segments pass, on the kernel path.
//!
//! For HTTP/1 the program reads the status line; for gRPC's HTTP/2 it reads the headers of frames and the message of
//! a health check. Header compression is not decoded, so a call that fails without a message has no status code here.

use crate::address::SockAddr;
use crate::outcome::{CLOSED, GIVEN_UP, GRPC_FAILED, GRPC_STATUS, HTTP_STATUS, INVALID, UNREAD};

/// A connection of the kubelet whose answer is not complete yet. Value of `ANSWERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The endpoint to which the kubelet connected.
    pub destination: SockAddr,
    /// Sequence number of the app's next byte, host byte order.
    pub next: u32,
    /// When the connection began, nanoseconds of the kernel's own monotonic clock.
    pub since_ns: u64,
    /// What the next bytes are: [`STATUS_LINE`], [`FIRST_FRAME`], [`FRAME`], [`MESSAGE`] or [`EMPTY_MESSAGE`].
    pub expected: u32,
    /// Number of bytes to skip before the next bytes.
    pub skip: u32,
    /// How many of the next bytes are in `part`, because the segment ended within them.
    pub have: u32,
    /// The bytes that an earlier segment contained.
    pub part: [u8; PART],
}

/// Size of [`Answer::part`].
pub const PART: usize = 20;

const _: () = assert!(size_of::<Answer>() == 64);

// SAFETY: `Answer` is `repr(C)`, contains only integers: 24 bytes of `u32`, a `u64`, three `u32`, 20 `u8`, without padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Answer {}

/// The beginning of an HTTP/1 answer: `HTTP/1.1 200` and the byte that ends the status code.
pub const STATUS_LINE: u32 = 0;
/// The header of an HTTP/2 connection's first frame.
pub const FIRST_FRAME: u32 = 1;
/// The header of a further frame.
pub const FRAME: u32 = 2;
/// A message with its prefix, as far as it is needed.
pub const MESSAGE: u32 = 3;
/// The prefix of a message whose frame contains nothing else.
pub const EMPTY_MESSAGE: u32 = 4;

/// Maximum number of steps (frames, and parts of a frame) in one segment. A health check's whole answer has
/// about ten.
const STEPS: u32 = 16;
/// The longest frame that the kubelet accepts (RFC 9113, 4.2). Bytes.
const FRAME_LIMIT: u32 = 16_384;
/// The stream of a health check, the only call of its connection.
const STREAM: u32 = 1;

/// Frame types and flags (RFC 9113, 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

/// A result: a kind of [`crate::outcome`], and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// [`HTTP_STATUS`], [`GRPC_STATUS`], [`GRPC_FAILED`], [`INVALID`] or [`UNREAD`].
    pub kind: u32,
    /// The status; 0 if there is none.
    pub value: u32,
}

/// The next step after the expected bytes were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Known(Known),
    /// Skip this many bytes, then expect these.
    Expect {
        skip: u32,
        expected: u32,
    },
}

/// The bytes of a packet.
pub trait Bytes {
    /// `N` bytes from offset `at`; `None` if the packet is shorter.
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]>;
}

const fn known(kind: u32, value: u32) -> Known {
    Known { kind, value }
}

impl Answer {
    /// Reads a segment that begins with sequence number `seq`, and whose `length` bytes are at offset `at` of `bytes`.
    /// Returns the result once it is known.
    #[inline(always)]
    pub fn segment(&mut self, bytes: &impl Bytes, seq: u32, at: u32, length: u32) -> Option<Known> {
        // How many of the segment's bytes were read already: all, if it is retransmitted.
        let read = self.next.wrapping_sub(seq);
        if (read as i32) < 0 {
            // A segment is missing. It will be retransmitted, but this one will not be.
            return Some(known(UNREAD, 0));
        }
        if read >= length {
            return None;
        }
        self.next = seq.wrapping_add(length);
        self.walk(bytes, at.wrapping_add(read), at.wrapping_add(length))
    }

    /// Reads the bytes from `at` to `end`.
    #[inline(always)]
    fn walk(&mut self, bytes: &impl Bytes, mut at: u32, end: u32) -> Option<Known> {
        for _ in 0..STEPS {
            let left = end.wrapping_sub(at);
            if self.skip >= left {
                self.skip -= left;
                return None;
            }
            at = at.wrapping_add(self.skip);
            self.skip = 0;
            let step = match self.expected {
                STATUS_LINE => status_line(self.take(bytes, &mut at, end)?),
                MESSAGE => message(self.take(bytes, &mut at, end)?),
                EMPTY_MESSAGE => empty_message(self.take(bytes, &mut at, end)?),
                expected => frame(self.take(bytes, &mut at, end)?, expected == FIRST_FRAME),
            };
            match step {
                Step::Known(known) => return Some(known),
                Step::Expect { skip, expected } => {
                    self.skip = skip;
                    self.expected = expected;
                }
            }
        }
        Some(known(UNREAD, 0))
    }

    /// The next `N` bytes, which may begin in an earlier segment; `None` if they do not end in this one.
    #[inline(always)]
    fn take<const N: usize>(
        &mut self,
        bytes: &impl Bytes,
        at: &mut u32,
        end: u32,
    ) -> Option<[u8; N]> {
        const { assert!(N <= PART) };
        if self.have == 0 && end.wrapping_sub(*at) >= N as u32 {
            let taken = bytes.load(*at)?;
            *at = at.wrapping_add(N as u32);
            return Some(taken);
        }
        let mut taken = [0; N];
        for (index, byte) in taken.iter_mut().enumerate() {
            if index as u32 >= self.have {
                if *at == end {
                    return None;
                }
                let [next] = bytes.load(*at)?;
                self.part[index] = next;
                self.have = index as u32 + 1;
                *at = at.wrapping_add(1);
            }
            *byte = self.part[index];
        }
        self.have = 0;
        Some(taken)
    }
}

/// The kind of outcome of a connection that ends before its result is known: it shows which end has closed the
/// connection. `next`: the field of its [`Answer`]; `received`: the sequence number up to which the kubelet's socket has
/// received, which includes a FIN.
#[inline(always)]
pub const fn ended(next: u32, received: u32, by_kubelet: bool) -> u32 {
    if received.wrapping_sub(next) as i32 > 1 {
        // The app has sent an answer in packets that are not parsed.
        UNREAD
    } else if by_kubelet {
        GIVEN_UP
    } else {
        CLOSED
    }
}

#[inline(always)]
fn status_line(line: [u8; 13]) -> Step {
    let [b'H', b'T', b'T', b'P', b'/', rest @ ..] = line else {
        return Step::Known(known(INVALID, 0));
    };
    let unread = Step::Known(known(UNREAD, 0));
    let [b'1', b'.', b'0' | b'1', b' ', a, b, c, b' ' | b'\r' | b'\n'] = rest else {
        return unread;
    };
    if !a.is_ascii_digit() || !b.is_ascii_digit() || !c.is_ascii_digit() {
        return unread;
    }
    let digit = |byte: u8| u32::from(byte - b'0');
    match digit(a) * 100 + digit(b) * 10 + digit(c) {
        // Another answer follows this one.
        100 | 102..=199 => unread,
        status => Step::Known(known(HTTP_STATUS, status)),
    }
}

#[inline(always)]
fn frame(header: [u8; 9], is_first: bool) -> Step {
    let [a, b, c, kind, flags, s, t, u, v] = header;
    let length = u32::from_be_bytes([0, a, b, c]);
    let stream = u32::from_be_bytes([s & 127, t, u, v]);
    if length > FRAME_LIMIT || is_first && kind != SETTINGS {
        return Step::Known(known(INVALID, 0));
    }
    let ends = flags & END_STREAM != 0;
    match kind {
        _ if stream != STREAM => {}
        // An answer ends with trailers; a failed call may contain nothing else.
        DATA | HEADERS if ends => return Step::Known(known(GRPC_FAILED, 0)),
        RST_STREAM => return Step::Known(known(GRPC_FAILED, 0)),
        DATA if flags & PADDED != 0 => return Step::Known(known(UNREAD, 0)),
        DATA => match length {
            0 => {}
            1..=4 | 6 => return Step::Known(known(UNREAD, 0)),
            5 => return expect(EMPTY_MESSAGE),
            _ => return expect(MESSAGE),
        },
        _ => {}
    }
    Step::Expect {
        skip: length,
        expected: FRAME,
    }
}

#[inline(always)]
const fn expect(expected: u32) -> Step {
    Step::Expect { skip: 0, expected }
}

/// A HealthCheckResponse with its prefix (not compressed, and the length): only its field 1, of type enum.
#[inline(always)]
fn message(message: [u8; 7]) -> Step {
    Step::Known(match message {
        [0, 0, 0, 0, 2, 8, status @ 0..128] => known(GRPC_STATUS, status as u32),
        _ => known(UNREAD, 0),
    })
}

/// A HealthCheckResponse without fields: status UNKNOWN, the enum's first value.
#[inline(always)]
fn empty_message(prefix: [u8; 5]) -> Step {
    Step::Known(match prefix {
        [0, 0, 0, 0, 0] => known(GRPC_STATUS, 0),
        _ => known(UNREAD, 0),
    })
}

#[cfg(test)]
mod tests;
