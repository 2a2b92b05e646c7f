//! The programs' record of each connection that they refuse: a probe's result that no user-space process sees.

use crate::address::SockAddr;

/// One record of the ring buffer `REFUSALS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The endpoint to which the kubelet connected.
    pub destination: SockAddr,
}

const _: () = assert!(size_of::<Refusal>() == 20);

// SAFETY: `Refusal` is `repr(C)` around one `SockAddr`, 20 bytes without padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Refusal {}

#[cfg(feature = "user")]
impl Refusal {
    /// Parses a record of the ring buffer; `None` if its size is wrong.
    pub fn read(record: &[u8]) -> Option<Self> {
        if record.len() != size_of::<Self>() {
            return None;
        }
        let mut words = [0; 5];
        for (word, bytes) in words.iter_mut().zip(record.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let [a, b, c, d, port] = words;
        Some(Self {
            destination: SockAddr {
                ip: [a, b, c, d],
                port,
            },
        })
    }
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let destination = SockAddr {
            ip: [1, 2, 3, 4],
            port: 8080,
        };
        let bytes = [1_u32, 2, 3, 4, 8080].map(u32::to_ne_bytes);
        assert_eq!(
            Refusal::read(bytes.as_flattened()),
            Some(Refusal { destination })
        );
        assert_eq!(Refusal::read(&[0; 19]), None);
        assert_eq!(Refusal::read(&[]), None);
    }
}
