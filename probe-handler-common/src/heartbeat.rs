//! Whether the handler is alive, as the programs see it.

/// Index into `HEARTBEAT`: when the handler was last alive.
pub const BEAT: u32 = 0;
/// Index into `HEARTBEAT`: the programs' clock, when a datagram of one byte last asked for it.
pub const CLOCK: u32 = 1;
/// Index into `HEARTBEAT`: when the handler was last alive, whether it wants connections or not.
pub const LEASE: u32 = 2;
/// How many entries `HEARTBEAT` has.
pub const ENTRIES: u32 = 3;

/// Value of `HEARTBEAT` while the handler wants no connections.
pub const STOPPED: u64 = 0;

/// Whether a handler whose last heartbeat was at `beat_ns` takes connections at `now_ns`. Both are times of the
/// kernel's own monotonic clock, read by programs: no clock of user space is compared with it, because those differ
/// in a time namespace (time_namespaces(7)).
#[inline(always)]
pub const fn is_fresh(beat_ns: u64, now_ns: u64, timeout_ns: u64) -> bool {
    // The two are read on different CPUs: a heartbeat may seem to be a little ahead.
    beat_ns != STOPPED && now_ns.saturating_sub(beat_ns) <= timeout_ns
}

/// Whether a daemon whose handler was last alive at `lease_ns` has been gone for so long that its programs stand aside.
/// `outlive_ns` of 0: they never do; so before the handler's first sign of life.
#[inline(always)]
pub const fn is_over(lease_ns: u64, now_ns: u64, outlive_ns: u64) -> bool {
    outlive_ns != 0 && lease_ns != 0 && now_ns.saturating_sub(lease_ns) > outlive_ns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_fresh_until_its_time_is_over() {
        assert!(is_fresh(5_000, 5_000, 1_000));
        assert!(is_fresh(5_000, 6_000, 1_000));
        assert!(!is_fresh(5_000, 6_001, 1_000));
        assert!(is_fresh(5_000, 4_999, 1_000), "read on another CPU");
    }

    #[test]
    fn a_lease_is_over_when_its_time_is() {
        assert!(!is_over(5_000, 15_000, 10_000));
        assert!(is_over(5_000, 15_001, 10_000));
        assert!(!is_over(5_000, u64::MAX, 0), "none was given");
        assert!(!is_over(0, u64::MAX, 10_000), "not begun yet");
    }

    #[test]
    fn a_stopped_handler_has_no_heartbeat() {
        assert!(!is_fresh(STOPPED, 10, 1_000));
    }
}
