//! The record of a redirected connection.

use crate::address::SockAddr;

/// A socket of the kubelet that connects to an endpoint. Value of `SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// The endpoint to which the kubelet connected.
    pub destination: SockAddr,
    /// The socket's initial sequence number, host byte order, once the connection is established; 0 until then.
    pub isn: u32,
    /// The path of its connection: [`HANDLER`] or [`EXEMPT`].
    pub path: u32,
}

/// The connection is redirected to the handler.
pub const HANDLER: u32 = 0;
/// The connection goes to the pod itself, and is exempt from the mesh's redirect.
pub const EXEMPT: u32 = 1;

const _: () = assert!(size_of::<Original>() == 28);

// SAFETY: `Original` is `repr(C)`, contains only `u32`, 28 bytes without padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Original {}

/// One TCP connection to the handler. Key of `FLOWS`.
///
/// An address and port identify a connection only while it exists: another process may use the port before the
/// handler accepts the first connection. The initial sequence number distinguishes the two. The kernel derives it
/// from a clock with steps of 64 ns, so that two connections from one address and port never have the same number
/// within 274 s (RFC 6528; Linux net/core/secure_seq.c), and a process without CAP_NET_ADMIN can't choose it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The client's address and port.
    pub client: SockAddr,
    /// The client's initial sequence number, host byte order.
    pub isn: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 24);

// SAFETY: `FlowKey` is `repr(C)`, contains only `u32`, 24 bytes without padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for FlowKey {}

/// The handler's record of a redirected connection. Value of `FLOWS`, written only by `sock_ops` and
/// removed on use: it distinguishes the kubelet's connection from those of other local processes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The endpoint to which the kubelet connected.
    pub original: SockAddr,
    /// 1 once the kubelet's socket is closed: then usable only for the verdict of a TCP probe.
    pub closed: u32,
    /// Cookie of the kubelet's socket.
    pub cookie: u64,
}

const _: () = assert!(size_of::<Flow>() == 32);

// SAFETY: `Flow` is `repr(C)`, contains only integers: 24 bytes of `u32`, then a `u64`, without padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Flow {}
