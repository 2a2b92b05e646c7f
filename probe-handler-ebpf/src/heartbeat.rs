//! The handler's heartbeat: stamped, and asked for, by the programs' own clock.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use probe_handler_common::config::Config;
use probe_handler_common::heartbeat::is_fresh;

use crate::maps::HEARTBEAT;

/// Notes that the handler is alive now.
#[inline(always)]
pub fn stamp() {
    if let Some(beat) = HEARTBEAT.get_ptr_mut(0) {
        // SAFETY: a live map value of 8 bytes, written as one; a read beside it sees the old or the new one.
        unsafe { core::ptr::write_volatile(beat, bpf_ktime_get_ns()) };
    }
}

/// Whether the handler gave a sign of life not long ago, and wants connections.
#[inline(always)]
pub fn is_alive(config: &Config) -> bool {
    let Some(beat) = HEARTBEAT.get_ptr(0) else {
        return false;
    };
    // SAFETY: a live map value of 8 bytes; the clock is only read.
    let (beat, now) = unsafe { (core::ptr::read_volatile(beat), bpf_ktime_get_ns()) };
    is_fresh(beat, now, config.heartbeat_timeout_ns)
}
