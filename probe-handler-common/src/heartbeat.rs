//! Whether the programs consider the handler alive.

/// Index into `HEARTBEAT`: time of the handler's last heartbeat, or [`STOPPED`].
pub const BEAT: u32 = 0;
/// Index into `HEARTBEAT`: the programs' clock at the last datagram of one byte, which requests the time.
pub const CLOCK: u32 = 1;
/// Index into `HEARTBEAT`: when the daemon last reported that it runs, even if the handler accepts no connections.
pub const LEASE: u32 = 2;
/// The number of entries of `HEARTBEAT`.
pub const ENTRIES: u32 = 3;

/// Value of [`BEAT`] while the handler accepts no connections.
pub const STOPPED: u64 = 0;

/// Whether a handler whose last heartbeat was at `beat_ns` accepts connections at `now_ns`. Both are times of the
/// kernel's own monotonic clock, read by the programs: they are never compared with a clock of user space, because
/// those differ in a time namespace (time_namespaces(7)).
#[inline(always)]
pub const fn is_fresh(beat_ns: u64, now_ns: u64, timeout_ns: u64) -> bool {
    // The two times are read on different CPUs, so the heartbeat may be slightly later than `now_ns`.
    beat_ns != STOPPED && now_ns.saturating_sub(beat_ns) <= timeout_ns
}

/// Whether a daemon that last reported at `lease_ns` that it runs has been gone for so long that its programs leave
/// all connections unchanged. False if `outlive_ns` is 0, and before the first such report.
#[inline(always)]
pub const fn is_over(lease_ns: u64, now_ns: u64, outlive_ns: u64) -> bool {
    outlive_ns != 0 && lease_ns != 0 && now_ns.saturating_sub(lease_ns) > outlive_ns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_fresh_until_its_timeout() {
        assert!(is_fresh(5_000, 5_000, 1_000));
        assert!(is_fresh(5_000, 6_000, 1_000));
        assert!(!is_fresh(5_000, 6_001, 1_000));
        assert!(is_fresh(5_000, 4_999, 1_000), "read on another CPU");
    }

    #[test]
    fn a_lease_ends_after_its_duration() {
        assert!(!is_over(5_000, 15_000, 10_000));
        assert!(is_over(5_000, 15_001, 10_000));
        assert!(!is_over(5_000, u64::MAX, 0), "no limit");
        assert!(!is_over(0, u64::MAX, 10_000), "it has not started yet");
    }

    #[test]
    fn a_stopped_handler_has_no_heartbeat() {
        assert!(!is_fresh(STOPPED, 10, 1_000));
    }
}
