//! probe-handler's eBPF programs: entry points only. All but two are attached to the kubelet's own cgroup.
//!
//! `connect4`/`connect6` decide about each TCP connection the kubelet makes, `sock_ops` ties a
//! redirected connection to its original destination, `getpeername4`/`getpeername6` keep telling the
//! kubelet that its peer is the pod. `heartbeat`, attached to a socket of the daemon's, notes that its handler is alive.
//! `exempt` is asked by our rules in pods whether a packet begins a connection of the kubelet's.
#![no_std]
#![no_main]

mod connect;
mod exempt;
mod heartbeat;
mod listener;
mod log;
mod maps;
mod sockets;
mod verdict;

use aya_ebpf::macros::{cgroup_sock_addr, sock_ops, socket_filter};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockOpsContext};

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

/// A socket of the kubelet starts connecting, or changes its state.
#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    sockets::on_event(&ctx);
    1
}

/// The kubelet asks for the peer of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    sockets::peer_name4(&ctx);
    verdict::Verdict::ALLOW.into()
}

/// The kubelet asks for the peer of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    sockets::peer_name6(&ctx);
    verdict::Verdict::ALLOW.into()
}

/// The handler sends itself a datagram, which is dropped.
#[socket_filter]
pub fn heartbeat(ctx: SkBuffContext) -> i64 {
    heartbeat::on_datagram(ctx.len());
    0
}

/// A packet of a pod's, from its IP header on, as netfilter hands it over (xt_bpf).
#[socket_filter]
pub fn exempt(ctx: SkBuffContext) -> i64 {
    i64::from(exempt::is_exempt(&ctx))
}

/// The kernel offers these programs' helpers to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: the verifier rejects a program that could get here and loop.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
