//! The programs' record of a connection that does not pass through the handler.

use crate::address::SockAddr;

/// One record of the ring buffer `OUTCOMES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The endpoint to which the kubelet connected.
    pub destination: SockAddr,
    /// [`REFUSED`] to [`UNREAD`].
    pub kind: u32,
    /// Time from the SYN to the outcome in microseconds; 0 for [`REFUSED`].
    pub after_us: u32,
    /// The status, if the kind has one; else 0.
    pub value: u32,
}

/// A program refused the connection before the SYN.
pub const REFUSED: u32 = 0;
/// The kubelet's connection to the app was established, on the kernel path.
pub const ESTABLISHED: u32 = 1;
/// The kubelet's connection on the kernel path ended before it was established: it was refused, or the kubelet gave up.
pub const ENDED: u32 = 2;

// The remaining kinds are for connections on the kernel path whose answer program `answer` reads. Each such connection
// has one of them instead of `ESTABLISHED`.

/// The app answered HTTP; the value is the status code.
pub const HTTP_STATUS: u32 = 3;
/// The app answered a gRPC health check; the value is the `ServingStatus` of grpc.health.v1.
pub const GRPC_STATUS: u32 = 4;
/// The gRPC call failed.
pub const GRPC_FAILED: u32 = 5;
/// The app's answer is not of the probe's protocol.
pub const INVALID: u32 = 6;
/// The app closed the connection before its answer was complete, or the answer was lost.
pub const CLOSED: u32 = 7;
/// The kubelet closed the connection before the app's answer was complete.
pub const GIVEN_UP: u32 = 8;
/// The app's answer is not one that the program reads.
pub const UNREAD: u32 = 9;

impl Outcome {
    /// The time from `since_ns` to `now_ns` as a value of [`Outcome::after_us`].
    #[inline(always)]
    pub const fn after_us(since_ns: u64, now_ns: u64) -> u32 {
        let micros = now_ns.saturating_sub(since_ns) / 1000;
        // A lifecycle hook has no timeout, and 71 minutes fit.
        if micros > u32::MAX as u64 {
            u32::MAX
        } else {
            micros as u32
        }
    }
}

const _: () = assert!(size_of::<Outcome>() == 32);

// SAFETY: `Outcome` is `repr(C)`, contains only `u32`, 32 bytes without padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Outcome {}

#[cfg(feature = "user")]
impl Outcome {
    /// Parses a record of the ring buffer; `None` if its size is wrong.
    pub fn read(record: &[u8]) -> Option<Self> {
        if record.len() != size_of::<Self>() {
            return None;
        }
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(record.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let [a, b, c, d, port, kind, after_us, value] = words;
        Some(Self {
            destination: SockAddr {
                ip: [a, b, c, d],
                port,
            },
            kind,
            after_us,
            value,
        })
    }
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let expected = Outcome {
            destination: SockAddr {
                ip: [1, 2, 3, 4],
                port: 8080,
            },
            kind: HTTP_STATUS,
            after_us: 250,
            value: 503,
        };
        let bytes = [1_u32, 2, 3, 4, 8080, 3, 250, 503].map(u32::to_ne_bytes);
        assert_eq!(Outcome::read(bytes.as_flattened()), Some(expected));
        assert_eq!(Outcome::read(&[0; 31]), None);
        assert_eq!(Outcome::read(&[]), None);
    }

    #[test]
    fn a_time_that_does_not_fit_is_the_longest() {
        assert_eq!(Outcome::after_us(5_000, 9_999), 4);
        assert_eq!(Outcome::after_us(5_000, 0), 0);
        assert_eq!(Outcome::after_us(0, u64::MAX), u32::MAX);
    }
}
