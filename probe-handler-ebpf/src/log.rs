//! The log lines that `--kernel-log` shows; empty unless `Config::verbose` is set.

use core::net::Ipv6Addr;

use aya_ebpf::EbpfContext;
use aya_log_ebpf::info;
use probe_handler_common::address::SockAddr;

use crate::maps::CONFIG;

/// Logs what happens to a connection to `destination`. Shows IPv4 addresses as IPv4-mapped ones, because a second call of
/// the macro would cost the verifier too much.
#[inline(always)]
pub fn log_connection(ctx: &impl EbpfContext, destination: &SockAddr, what: &str) {
    if CONFIG.get(0).is_none_or(|config| config.verbose == 0) {
        return;
    }
    let [a, b, c, d] = destination.ip.map(u32::from_be);
    let ip = Ipv6Addr::new(
        (a >> 16) as u16,
        a as u16,
        (b >> 16) as u16,
        b as u16,
        (c >> 16) as u16,
        c as u16,
        (d >> 16) as u16,
        d as u16,
    );
    info!(ctx, "[{:i}]:{} {}", ip, destination.port, what);
}
