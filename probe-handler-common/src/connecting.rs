//! A connection that is exempt from a mesh's redirect while it is being opened.

use crate::address::SockAddr;

/// The two ends of a connection. Key of `CONNECTING`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The kubelet's address and port.
    pub source: SockAddr,
    /// The endpoint's address and port.
    pub destination: SockAddr,
}

const _: () = assert!(size_of::<Tuple>() == 40);

// SAFETY: `Tuple` is `repr(C)`, contains only `u32`, 40 bytes without padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Tuple {}

/// Value of `CONNECTING`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connecting {
    /// Cookie of the socket: only an event of this socket removes the entry. 0 for an entry of the daemon itself.
    pub cookie: u64,
    /// When the connection began, nanoseconds of the kernel's own monotonic clock.
    pub since_ns: u64,
    /// 1 once the SYN has arrived in a pod that has our rules.
    pub arrived: u64,
}

const _: () = assert!(size_of::<Connecting>() == 24);

// SAFETY: `Connecting` is `repr(C)`, contains only `u64`, 24 bytes without padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Connecting {}

/// How long an entry is valid. It is removed when the socket leaves SYN_SENT; this limit applies if that event was missed.
/// It must exceed the longest connect: 127 s with six retransmissions, the default of `tcp_syn_retries`.
pub const LIFETIME_NS: u64 = 150_000_000_000;

/// How long an entry of the daemon itself is valid if the daemon is killed before it removes the entry: longer than the
/// timeout of a trial connection.
pub const TRIAL_LIFETIME_NS: u64 = 2_000_000_000;

/// `since_ns` for an entry that is written at `now_ns` and is valid for [`TRIAL_LIFETIME_NS`] only. On a node whose uptime
/// is below [`LIFETIME_NS`] the entry is valid for longer.
pub const fn trial_since(now_ns: u64) -> u64 {
    now_ns.saturating_sub(LIFETIME_NS - TRIAL_LIFETIME_NS)
}

/// Whether an entry that began at `since_ns` is still valid at `now_ns`.
#[inline(always)]
pub const fn counts(since_ns: u64, now_ns: u64) -> bool {
    // The two times are read on different CPUs, so `since_ns` may be slightly later than `now_ns`.
    now_ns.saturating_sub(since_ns) <= LIFETIME_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_daemon_is_valid_for_a_trial() {
        let now = 2 * LIFETIME_NS;
        assert!(counts(trial_since(now), now + TRIAL_LIFETIME_NS));
        assert!(!counts(trial_since(now), now + TRIAL_LIFETIME_NS + 1));
    }

    #[test]
    fn an_entry_is_valid_for_longer_than_the_longest_connect() {
        assert!(counts(5, 5));
        assert!(counts(5, 5 + 127_000_000_000), "the last retransmission");
        assert!(!counts(5, 6 + LIFETIME_NS));
        assert!(counts(6, 5), "read on another CPU");
    }
}
