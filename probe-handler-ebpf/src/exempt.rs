//! Called by our rules in pods: returns whether a packet is the SYN of a connection that is exempt from the mesh's redirect.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::SkBuffContext;
use probe_handler_common::address::SockAddr;
use probe_handler_common::connecting::{Tuple, counts};
use probe_handler_common::counters::Counter;

use crate::maps::{CONNECTING, count};

/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// FIN, SYN, RST and ACK.
const FLAGS: u8 = 0b0001_0111;
/// SYN.
const SYN: u8 = 0b0000_0010;

/// Whether the packet is the SYN of a connection in `CONNECTING`.
#[inline(always)]
pub fn is_exempt(ctx: &SkBuffContext) -> bool {
    let Some(tuple) = syn(ctx) else {
        return false;
    };
    let Some(entry) = CONNECTING.get_ptr_mut(tuple) else {
        return false;
    };
    // SAFETY: a valid map value, whose fields are read and written as whole words; an entry that is replaced meanwhile
    // has the same tuple.
    unsafe {
        let since = core::ptr::read_volatile(&raw const (*entry).since_ns);
        if !counts(since, bpf_ktime_get_ns()) {
            return false;
        }
        // Several rules call this for one packet, and a SYN may be retransmitted: count each connection once.
        let arrived = &raw mut (*entry).arrived;
        if core::ptr::read_volatile(arrived) == 0 {
            core::ptr::write_volatile(arrived, 1);
            // The daemon's own trial connections have no cookie.
            if core::ptr::read_volatile(&raw const (*entry).cookie) != 0 {
                count(Counter::Exempt);
            }
        }
    }
    true
}

/// The two ends of the connection whose SYN the packet is. `None` for other packets, and for those that are not parsed:
/// with IPv6 extension headers, or fragments.
#[inline(always)]
fn syn(ctx: &SkBuffContext) -> Option<Tuple> {
    // 20 bytes: the smaller of the minimum header lengths of both families.
    let start: [u8; 20] = ctx.load(0).ok()?;
    match start[0] >> 4 {
        4 => syn_v4(ctx, &start),
        6 => syn_v6(ctx),
        _ => None,
    }
}

#[inline(always)]
fn syn_v4(ctx: &SkBuffContext, header: &[u8; 20]) -> Option<Tuple> {
    let is_fragment = header[6] & 0b0011_1111 != 0 || header[7] != 0;
    if header[9] != TCP || is_fragment {
        return None;
    }
    // The header is longer if it has options.
    let length = usize::from(header[0] & 0x0f) * 4;
    let (source_port, destination_port) = ports_of_syn(ctx, length)?;
    let source = [header[12], header[13], header[14], header[15]];
    let destination = [header[16], header[17], header[18], header[19]];
    Some(Tuple {
        source: SockAddr::v4(u32::from_ne_bytes(source), source_port),
        destination: SockAddr::v4(u32::from_ne_bytes(destination), destination_port),
    })
}

#[inline(always)]
fn syn_v6(ctx: &SkBuffContext) -> Option<Tuple> {
    const HEADER: usize = 40;
    let next: u8 = ctx.load(6).ok()?;
    if next != TCP {
        return None;
    }
    let (source_port, destination_port) = ports_of_syn(ctx, HEADER)?;
    Some(Tuple {
        source: SockAddr::v6(ctx.load(8).ok()?, source_port),
        destination: SockAddr::v6(ctx.load(24).ok()?, destination_port),
    })
}

/// The ports in the TCP header at `offset`, if the packet is a SYN without ACK.
#[inline(always)]
fn ports_of_syn(ctx: &SkBuffContext, offset: usize) -> Option<(u16, u16)> {
    let header: [u8; 14] = ctx.load(offset).ok()?;
    if header[13] & FLAGS != SYN {
        return None;
    }
    Some((
        u16::from_be_bytes([header[0], header[1]]),
        u16::from_be_bytes([header[2], header[3]]),
    ))
}
