//! A connection that is to be kept out of a mesh's redirect.

use crate::address::SockAddr;

/// A connection from one end to the other. Key of `CONNECTING`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The kubelet's address and port.
    pub source: SockAddr,
    /// The endpoint's.
    pub destination: SockAddr,
}

const _: () = assert!(size_of::<Tuple>() == 40);

// SAFETY: `Tuple` is `repr(C)`, made of `u32` only, 40 bytes with no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Tuple {}

/// Value of `CONNECTING`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connecting {
    /// Cookie of the socket: its end removes the entry, and no other's. 0 for an entry of the daemon's own.
    pub cookie: u64,
    /// When it began, nanoseconds of the kernel's own monotonic clock.
    pub since_ns: u64,
    /// 1 once the SYN arrived in a pod.
    pub arrived: u64,
}

const _: () = assert!(size_of::<Connecting>() == 24);

// SAFETY: `Connecting` is `repr(C)`, made of `u64` only, 24 bytes with no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Connecting {}

/// How long an entry counts. It is removed when the socket leaves SYN_SENT; this is for one whose end was not seen. It
/// must be longer than the longest connect: 127 s with six retransmissions, the default of `tcp_syn_retries`.
pub const LIFETIME_NS: u64 = 150_000_000_000;

/// How long an entry of the daemon's own counts, should it be killed before it removes it: longer than a trial
/// connection may take.
pub const TRIAL_LIFETIME_NS: u64 = 2_000_000_000;

/// The beginning of an entry that is written at `now_ns` and counts for [`TRIAL_LIFETIME_NS`] only. On a node that has
/// not been up for [`LIFETIME_NS`] yet it counts for longer.
pub const fn trial_since(now_ns: u64) -> u64 {
    now_ns.saturating_sub(LIFETIME_NS - TRIAL_LIFETIME_NS)
}

/// Whether an entry that began at `since_ns` still counts at `now_ns`.
#[inline(always)]
pub const fn counts(since_ns: u64, now_ns: u64) -> bool {
    // The two are read on different CPUs: the beginning may seem to be a little ahead.
    now_ns.saturating_sub(since_ns) <= LIFETIME_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_daemons_own_counts_for_a_trial() {
        let now = 2 * LIFETIME_NS;
        assert!(counts(trial_since(now), now + TRIAL_LIFETIME_NS));
        assert!(!counts(trial_since(now), now + TRIAL_LIFETIME_NS + 1));
    }

    #[test]
    fn an_entry_counts_for_longer_than_a_connect_may_take() {
        assert!(counts(5, 5));
        assert!(counts(5, 5 + 127_000_000_000), "the last retransmission");
        assert!(!counts(5, 6 + LIFETIME_NS));
        assert!(counts(6, 5), "read on another CPU");
    }
}
