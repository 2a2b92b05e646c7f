//! The programs' record of a connection whose outcome no user-space process of ours sees.

use crate::address::SockAddr;

/// One record of the ring buffer `OUTCOMES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The endpoint to which the kubelet connected.
    pub destination: SockAddr,
    /// [`REFUSED`], [`ESTABLISHED`] or [`ENDED`].
    pub kind: u32,
    /// Time from the SYN to the outcome in microseconds; 0 for [`REFUSED`].
    pub after_us: u32,
}

/// A program refused the connection before the SYN.
pub const REFUSED: u32 = 0;
/// The kubelet's connection to the app was established, on the kernel path.
pub const ESTABLISHED: u32 = 1;
/// The kubelet's connection on the kernel path ended before it was established: it was refused, or the kubelet gave up.
pub const ENDED: u32 = 2;

const _: () = assert!(size_of::<Outcome>() == 28);

// SAFETY: `Outcome` is `repr(C)`, contains only `u32`, 28 bytes without padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Outcome {}

#[cfg(feature = "user")]
impl Outcome {
    /// Parses a record of the ring buffer; `None` if its size is wrong.
    pub fn read(record: &[u8]) -> Option<Self> {
        if record.len() != size_of::<Self>() {
            return None;
        }
        let mut words = [0; 7];
        for (word, bytes) in words.iter_mut().zip(record.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let [a, b, c, d, port, kind, after_us] = words;
        Some(Self {
            destination: SockAddr {
                ip: [a, b, c, d],
                port,
            },
            kind,
            after_us,
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
            kind: ESTABLISHED,
            after_us: 250,
        };
        let bytes = [1_u32, 2, 3, 4, 8080, 1, 250].map(u32::to_ne_bytes);
        assert_eq!(Outcome::read(bytes.as_flattened()), Some(expected));
        assert_eq!(Outcome::read(&[0; 27]), None);
        assert_eq!(Outcome::read(&[]), None);
    }
}
