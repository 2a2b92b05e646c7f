//! Whether the handler is alive, as the programs see it.

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
    fn a_stopped_handler_has_no_heartbeat() {
        assert!(!is_fresh(STOPPED, 10, 1_000));
    }
}
