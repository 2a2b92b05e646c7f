//! Entry points of probe-handler's eBPF programs. All except three are attached to the kubelet's cgroup.
//!
//! `connect4`/`connect6` decide what happens to each TCP connection of the kubelet, `sock_ops` records the
//! original destination of a redirected connection, and `getpeername4`/`getpeername6` return the pod as the
//! peer of a redirected socket. `answer` reads the answers of apps on the kernel path. `heartbeat`, attached to a socket of the daemon, records when the handler was last
//! alive. `exempt`, called by our rules in pods, returns whether a packet is the SYN of a connection of the kubelet. Where the kernel
//! can't call it from rules, `classify` determines that at tc ingress of pods' interfaces.
#![no_std]
#![no_main]

mod answer;
mod connect;
mod exempt;
mod heartbeat;
mod listener;
mod log;
mod maps;
mod sockets;
mod verdict;

use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr, classifier, sock_ops, socket_filter};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockOpsContext, TcContext};

/// The kubelet connects an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect::connect4(&ctx).into()
}

/// The kubelet connects an IPv6 socket, perhaps to an IPv4-mapped address.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect::connect6(&ctx).into()
}

/// A socket of the kubelet starts to connect, or changes its state.
#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    sockets::on_event(&ctx);
    1
}

/// The kubelet calls getpeername() on an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    sockets::peer_name4(&ctx);
    verdict::Verdict::ALLOW.into()
}

/// The kubelet calls getpeername() on an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    sockets::peer_name6(&ctx);
    verdict::Verdict::ALLOW.into()
}

/// A socket of the kubelet's cgroup receives a packet; the data begins with the IP header. Drops no packet.
#[cgroup_skb(ingress)]
pub fn answer(ctx: SkBuffContext) -> i32 {
    answer::on_packet(&ctx);
    1
}

/// The handler sends a datagram to itself, which this program drops.
#[socket_filter]
pub fn heartbeat(ctx: SkBuffContext) -> i64 {
    heartbeat::on_datagram(ctx.len());
    0
}

/// Netfilter (xt_bpf) matches a packet in a pod; the data begins with the IP header.
#[socket_filter]
pub fn exempt(ctx: SkBuffContext) -> i64 {
    i64::from(exempt::is_exempt(ctx.skb.skb))
}

/// A packet arrives at an interface of a pod (tc ingress); the data begins with the link layer's header. Drops no
/// packet.
#[classifier]
pub fn classify(ctx: TcContext) -> i32 {
    exempt::classify(ctx.skb.skb)
}

/// The kernel allows the helpers that these programs use only to GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: the verifier rejects a program that could reach this loop.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
