//! Reads the result of a probe on the kernel path from the packets that the kubelet's socket receives.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::SkBuffContext;
use probe_handler_common::answer::{Answer, Bytes};
use probe_handler_common::outcome::Outcome;

use crate::maps::{ANSWERS, record_outcome};

/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// A packet that begins with its IP header.
struct Packet<'a>(&'a SkBuffContext);

impl Bytes for Packet<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.0.load(at as usize).ok()
    }
}

/// `cgroup_skb/ingress`. For a socket whose answer is not awaited, this costs one look-up.
#[inline(always)]
pub fn on_packet(ctx: &SkBuffContext) {
    // SAFETY: the context, which has a socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let Some(entry) = ANSWERS.get_ptr_mut(cookie) else {
        return;
    };
    let packet = Packet(ctx);
    let Some((seq, at)) = payload(&packet) else {
        return;
    };
    let Some(length @ 1..) = ctx.len().checked_sub(at) else {
        return;
    };
    // SAFETY: a valid map value. A connection's packets are handled one after the other; if not, at worst the result is
    // unknown.
    let answer: &mut Answer = unsafe { &mut *entry };
    let Some(known) = answer.segment(&packet, seq, at, length) else {
        return;
    };
    let destination = answer.destination;
    let since_ns = answer.since_ns;
    // The entry's removal decides who reports the connection: this program, or `sock_ops` at its end.
    if ANSWERS.remove(cookie).is_err() {
        return;
    }
    record_outcome(Outcome {
        destination,
        kind: known.kind,
        // SAFETY: the clock is only read.
        after_us: Outcome::after_us(since_ns, unsafe { bpf_ktime_get_ns() }),
        value: known.value,
    });
}

/// The sequence number of a TCP segment, and the offset of its payload. `None` for IPv6 with extension
/// headers.
#[inline(always)]
fn payload(packet: &Packet<'_>) -> Option<(u32, u32)> {
    let [first] = packet.load(0)?;
    let tcp = match first >> 4 {
        // The header is longer if it has options.
        4 => u32::from(first & 0x0f) * 4,
        6 => {
            let [next] = packet.load(6)?;
            if next != TCP {
                return None;
            }
            40
        }
        _ => return None,
    };
    let [_, _, _, _, a, b, c, d, _, _, _, _, offset] = packet.load(tcp)?;
    let seq = u32::from_be_bytes([a, b, c, d]);
    Some((seq, tcp + u32::from(offset >> 4) * 4))
}
