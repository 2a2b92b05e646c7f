//! Checks whether a socket listens on an address in a network namespace.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::helpers::{bpf_sk_lookup_tcp, bpf_sk_release};
use aya_ebpf::programs::SockAddrContext;
use probe_handler_common::address::SockAddr;

/// `TCP_LISTEN` of include/net/tcp_states.h.
const TCP_LISTEN: u32 = 10;

/// `BPF_F_CURRENT_NETNS`: the network namespace of the connecting socket, which is the kubelet's.
pub const KUBELET_NETNS: u64 = -1_i32 as i64 as u64;

/// Whether a socket in state TCP_LISTEN would accept a connection to `address` in the network namespace
/// with id `netns` (relative to the kubelet's). Wildcard, dual-stack and address-bound listeners are found
/// by the kernel's own lookup.
#[inline(always)]
pub fn listens(ctx: &SockAddrContext, address: &SockAddr, netns: u64) -> bool {
    // SAFETY: only integers, for which zero is valid. Without a source only a listener can match.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let port = (address.port as u16).to_be();
    let size = match address.as_v4() {
        Some(ip) => {
            tuple.__bindgen_anon_1.ipv4.daddr = ip;
            tuple.__bindgen_anon_1.ipv4.dport = port;
            // SAFETY: this field has just been written.
            size_of_val(unsafe { &tuple.__bindgen_anon_1.ipv4 })
        }
        None => {
            tuple.__bindgen_anon_1.ipv6.daddr = address.ip;
            tuple.__bindgen_anon_1.ipv6.dport = port;
            // SAFETY: this field has just been written.
            size_of_val(unsafe { &tuple.__bindgen_anon_1.ipv6 })
        }
    };
    // SAFETY: the context is valid and the tuple has the given size; the reference is released below.
    let socket = unsafe { bpf_sk_lookup_tcp(ctx.as_ptr(), &raw mut tuple, size as u32, netns, 0) };
    if socket.is_null() {
        return false;
    }
    // SAFETY: not null, and held until released.
    let listening = unsafe { (*socket).state } == TCP_LISTEN;
    // SAFETY: releases the reference of the lookup; the result is 0 for every socket that it can return.
    let _ = unsafe { bpf_sk_release(socket.cast()) };
    listening
}
