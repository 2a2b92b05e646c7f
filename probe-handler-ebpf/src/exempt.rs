//! Decides whether a packet is the SYN of a connection that is exempt from the mesh's redirect. Our rules in pods call this
//! directly; or it runs at tc ingress of a pod's interfaces, and passes the result to the rules in the packet's priority.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative};
use probe_handler_common::address::SockAddr;
use probe_handler_common::connecting::{Tuple, counts};
use probe_handler_common::counters::Counter;
use probe_handler_common::priority::{LOWEST, priority};

use crate::maps::{CLASSIFY_KEY, CONNECTING, count};

/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// FIN, SYN, RST and ACK.
const FLAGS: u8 = 0b0001_0111;
/// SYN.
const SYN: u8 = 0b0000_0010;

/// Sets the packet's priority to that of the filter's class if the packet is the SYN of a connection in `CONNECTING`, and resets
/// that priority on every other packet. Filters after this one run in any case.
#[inline(always)]
pub fn classify(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the context of this program, whose fields the verifier checks.
    let (class, before) = unsafe { ((*skb).tc_classid, (*skb).priority) };
    let exempt = is_syn_of_exempt(Packet { skb, link: true });
    // The hash is computed for few packets only.
    if !exempt && before < LOWEST {
        return TC_ACT_UNSPEC;
    }
    let Some(key) = CLASSIFY_KEY.get(0) else {
        return TC_ACT_UNSPEC;
    };
    let Some(ours) = priority(*key, class as u16) else {
        return TC_ACT_UNSPEC;
    };
    let after = match exempt {
        true => ours,
        false if before == ours => 0,
        false => before,
    };
    // SAFETY: as above; the field may be written.
    unsafe { (*skb).priority = after };
    TC_ACT_UNSPEC
}

/// Whether the packet, whose data begins with the IP header, is the SYN of a connection in `CONNECTING`.
#[inline(always)]
pub fn is_exempt(skb: *mut __sk_buff) -> bool {
    is_syn_of_exempt(Packet { skb, link: false })
}

/// A packet, and whether its data begins with a header of the link layer.
#[derive(Clone, Copy)]
struct Packet {
    skb: *mut __sk_buff,
    link: bool,
}

#[inline(always)]
fn is_syn_of_exempt(packet: Packet) -> bool {
    let Some(tuple) = syn(packet) else {
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
fn syn(packet: Packet) -> Option<Tuple> {
    // 20 bytes: the smaller of the minimum header lengths of both families.
    let start: [u8; 20] = load(packet, 0).ok()?;
    match start[0] >> 4 {
        4 => syn_v4(packet, &start),
        6 => syn_v6(packet),
        _ => None,
    }
}

#[inline(always)]
fn syn_v4(packet: Packet, header: &[u8; 20]) -> Option<Tuple> {
    let is_fragment = header[6] & 0b0011_1111 != 0 || header[7] != 0;
    if header[9] != TCP || is_fragment {
        return None;
    }
    // The header is longer if it has options.
    let length = usize::from(header[0] & 0x0f) * 4;
    let (source_port, destination_port) = ports_of_syn(packet, length)?;
    let source = [header[12], header[13], header[14], header[15]];
    let destination = [header[16], header[17], header[18], header[19]];
    Some(Tuple {
        source: SockAddr::v4(u32::from_ne_bytes(source), source_port),
        destination: SockAddr::v4(u32::from_ne_bytes(destination), destination_port),
    })
}

#[inline(always)]
fn syn_v6(packet: Packet) -> Option<Tuple> {
    const HEADER: usize = 40;
    let next: u8 = load(packet, 6).ok()?;
    if next != TCP {
        return None;
    }
    let (source_port, destination_port) = ports_of_syn(packet, HEADER)?;
    Some(Tuple {
        source: SockAddr::v6(load(packet, 8).ok()?, source_port),
        destination: SockAddr::v6(load(packet, 24).ok()?, destination_port),
    })
}

/// The ports in the TCP header at `offset`, if the packet is a SYN without ACK.
#[inline(always)]
fn ports_of_syn(packet: Packet, offset: usize) -> Option<(u16, u16)> {
    let header: [u8; 14] = load(packet, offset).ok()?;
    if header[13] & FLAGS != SYN {
        return None;
    }
    Some((
        u16::from_be_bytes([header[0], header[1]]),
        u16::from_be_bytes([header[2], header[3]]),
    ))
}

/// Reads at `offset` from the IP header.
#[inline(always)]
fn load<T>(packet: Packet, offset: usize) -> Result<T, i64> {
    let mut data = MaybeUninit::<T>::uninit();
    let (skb, offset) = (packet.skb.cast(), offset as u32);
    let (to, length) = (data.as_mut_ptr().cast(), size_of::<T>() as u32);
    // SAFETY: the helpers write the given number of bytes, and `T` consists of bytes or words, for which every value is valid.
    unsafe {
        let result = match packet.link {
            // Reads the linear part of the packet only, where the node's own kernel puts the headers.
            true => bpf_skb_load_bytes_relative(skb, offset, to, length, BPF_HDR_START_NET),
            false => bpf_skb_load_bytes(skb, offset, to, length),
        };
        match result {
            0 => Ok(data.assume_init()),
            error => Err(error),
        }
    }
}
