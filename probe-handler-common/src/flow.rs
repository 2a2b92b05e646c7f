//! The record of a redirected connection.

use crate::address::SockAddr;

/// What is known of a socket of the kubelet that connects to an endpoint. Value of `SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// The endpoint the kubelet dialled.
    pub destination: SockAddr,
    /// The socket's initial sequence number, host byte order, once the connection is established; 0 until then.
    pub isn: u32,
    /// Which way it goes: [`HANDLER`] or [`EXEMPT`].
    pub path: u32,
}

/// The socket was sent to the handler.
pub const HANDLER: u32 = 0;
/// The socket goes to the pod itself, and its connection is to be kept out of the mesh's redirect.
pub const EXEMPT: u32 = 1;

const _: () = assert!(size_of::<Original>() == 28);

// SAFETY: `Original` is `repr(C)`, made of `u32` only, 28 bytes with no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Original {}

/// One TCP connection to the handler. Key of `FLOWS`.
///
/// An address and port alone name a connection only for as long as it lives: the port may be another process's a
/// moment later, while the handler has yet to accept the first connection. The initial sequence number tells the
/// two apart. The kernel chooses it from a clock of 64 ns per step, so that two connections from one address and
/// port never have the same within 274 s (RFC 6528; Linux net/core/secure_seq.c), and a process without
/// CAP_NET_ADMIN has no way to choose it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The client's address and port.
    pub client: SockAddr,
    /// The client's initial sequence number, host byte order.
    pub isn: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 24);

// SAFETY: `FlowKey` is `repr(C)`, made of `u32` only, 24 bytes with no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for FlowKey {}

/// A redirected connection as the handler finds it. Value of `FLOWS`, written by our hook only and
/// consumed on use: it is what tells the kubelet's connection from any other local process's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The endpoint the kubelet dialled.
    pub original: SockAddr,
    /// 1 once the kubelet's socket is closed: good for a TCP probe's verdict, for nothing else.
    pub closed: u32,
    /// Cookie of the kubelet's socket.
    pub cookie: u64,
}

const _: () = assert!(size_of::<Flow>() == 32);

// SAFETY: `Flow` is `repr(C)`, integers only; 24 bytes of `u32` then a `u64`, no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Flow {}
