//! Writes and checks the handler's heartbeat, by the programs' own clock.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use probe_handler_common::config::Config;
use probe_handler_common::heartbeat::{BEAT, CLOCK, LEASE, is_fresh, is_over};

use crate::maps::HEARTBEAT;

/// Handles a datagram of `length` bytes: an empty one is a heartbeat, one byte requests the current time, and more bytes only
/// show that the daemon runs.
#[inline(always)]
pub fn on_datagram(length: u32) {
    match length {
        0 => {
            stamp(BEAT);
            stamp(LEASE);
        }
        1 => stamp(CLOCK),
        _ => stamp(LEASE),
    }
}

#[inline(always)]
fn stamp(entry: u32) {
    if let Some(beat) = HEARTBEAT.get_ptr_mut(entry) {
        // SAFETY: a valid map value of 8 bytes, written at once; a concurrent read returns the old or the new value.
        unsafe { core::ptr::write_volatile(beat, bpf_ktime_get_ns()) };
    }
}

/// Whether the daemon has been gone for so long that its programs leave all connections unchanged.
#[inline(always)]
pub fn lease_is_over(config: &Config) -> bool {
    if config.outlive_ns == 0 {
        return false;
    }
    let Some(lease) = HEARTBEAT.get_ptr(LEASE) else {
        return false;
    };
    // SAFETY: as in `is_alive`.
    let (lease, now) = unsafe { (core::ptr::read_volatile(lease), bpf_ktime_get_ns()) };
    is_over(lease, now, config.outlive_ns)
}

/// Whether the handler's heartbeat is fresh, and the handler accepts connections.
#[inline(always)]
pub fn is_alive(config: &Config) -> bool {
    let Some(beat) = HEARTBEAT.get_ptr(BEAT) else {
        return false;
    };
    // SAFETY: a valid map value of 8 bytes; the clock is only read.
    let (beat, now) = unsafe { (core::ptr::read_volatile(beat), bpf_ktime_get_ns()) };
    is_fresh(beat, now, config.heartbeat_timeout_ns)
}
