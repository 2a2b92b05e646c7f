//! The record of a redirected connection.

use crate::address::SockAddr;
use crate::endpoint::{READ_GRPC, READ_HTTP};

/// A socket of the kubelet that connects to an endpoint. Value of `SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// The endpoint to which the kubelet connected.
    pub destination: SockAddr,
    /// The socket's initial sequence number, host byte order, once the connection is established; 0 until then.
    pub isn: u32,
    /// The path of its connection: [`HANDLER`], or [`EXEMPT`] and the form in which its answer is read.
    pub path: u32,
}

/// The connection is redirected to the handler.
pub const HANDLER: u32 = 0;
/// The connection goes to the pod itself, and is exempt from the mesh's redirect.
pub const EXEMPT: u32 = 1;
/// Like [`EXEMPT`], and the app's answer is read as HTTP/1.
pub const EXEMPT_HTTP: u32 = 2;
/// Like [`EXEMPT`], and the app's answer is read as that of a gRPC health check.
pub const EXEMPT_GRPC: u32 = 3;

/// The path of an exempt connection to an endpoint with `flags`.
#[inline(always)]
pub const fn exempt(flags: u32) -> u32 {
    if flags & READ_HTTP != 0 {
        EXEMPT_HTTP
    } else if flags & READ_GRPC != 0 {
        EXEMPT_GRPC
    } else {
        EXEMPT
    }
}

const _: () = assert!(size_of::<Original>() == 28);

// SAFETY: `Original` is `repr(C)`, contains only `u32`, 28 bytes without padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Original {}

/// The second key of a connection to the handler in `SOCKETS`: its local address, in 127.0.0.0/8 or ::1, and the handler's
/// port. A Multipath TCP socket has another cookie than the TCP socket of its connection, but the same ends. A cookie never
/// has the highest bit.
#[inline(always)]
pub const fn key_of_ends(own: &SockAddr, handler_port: u32) -> u64 {
    let [_, a, b, c] = own.ip[3].to_ne_bytes();
    let address = u32::from_be_bytes([0, a, b, c]) as u64;
    let family = own.as_v4().is_none() as u64;
    1 << 63
        | family << 56
        | address << 32
        | ((own.port & 0xffff) as u64) << 16
        | (handler_port & 0xffff) as u64
}

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

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn connections_with_other_ends_have_other_keys() {
        let own = |ip: IpAddr, port: u16| match ip {
            IpAddr::V4(ip) => SockAddr::v4(u32::from_ne_bytes(ip.octets()), port),
            IpAddr::V6(ip) => {
                let mut words = [0; 4];
                for (word, bytes) in words.iter_mut().zip(ip.octets().as_chunks::<4>().0) {
                    *word = u32::from_ne_bytes(*bytes);
                }
                SockAddr::v6(words, port)
            }
        };
        let v4 = |a, b, c, port| own(Ipv4Addr::new(127, a, b, c).into(), port);
        let ends = [
            (v4(0, 0, 1, 1), 2),
            (v4(0, 0, 1, 2), 1),
            (v4(0, 0, 1, 1), 65535),
            (v4(0, 1, 0, 1), 2),
            (v4(1, 0, 0, 1), 2),
            (own(Ipv6Addr::LOCALHOST.into(), 1), 2),
            (own(Ipv6Addr::LOCALHOST.into(), 1), 3),
        ];
        let keys = ends.map(|(own, port)| key_of_ends(&own, port));
        for (index, key) in keys.iter().enumerate() {
            assert!(*key >> 63 == 1 && !keys[..index].contains(key), "{index}");
        }
    }
}
