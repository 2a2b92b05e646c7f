//! Checks whether a TCP port has a listener in a network namespace, and whether a connection is being opened (sock_diag(7)).
//!
//! Sends one query for each port, which the kernel answers from its hash table of listeners. To list all listeners, the
//! kernel would walk through those of the whole node, and a pod with thousands of listeners could make that take long.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN, TCP_SYN_SENT,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::netlink::Netlink;
use crate::netns::Netns;

/// `INET_DIAG_NOCOOKIE` of include/uapi/linux/inet_diag.h, twice: matches any socket.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// The TCP listeners of a network namespace.
pub struct Listeners {
    netlink: Netlink,
}

impl Listeners {
    /// Opens a socket in `netns` for queries.
    ///
    /// # Errors
    /// Those of `setns`, `socket` and `connect`.
    pub fn of(netns: &Netns) -> io::Result<Self> {
        Ok(Self {
            netlink: Netlink::within(netns, NETLINK_SOCK_DIAG)?,
        })
    }

    /// Whether there is a listener for connections to `to`, either on that address or on the wildcard address.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn has(&self, to: SocketAddr) -> io::Result<bool> {
        let state = state(&self.netlink, to, None, StateFlags::LISTEN)?;
        Ok(state == Some(TCP_LISTEN))
    }
}

/// Whether a socket in the network namespace of `netlink` is in SYN_SENT from `source` to `destination`.
///
/// # Errors
/// Those of netlink.
pub(crate) fn is_connecting(
    netlink: &Netlink,
    source: SocketAddr,
    destination: SocketAddr,
) -> io::Result<bool> {
    let state = state(netlink, source, Some(destination), StateFlags::SYN_SENT)?;
    Ok(state == Some(TCP_SYN_SENT))
}

/// The state of the socket at `own`, if it is one of `states`: of the connection to `peer`, or of the listener.
fn state(
    netlink: &Netlink,
    own: SocketAddr,
    peer: Option<SocketAddr>,
    states: StateFlags,
) -> io::Result<Option<u8>> {
    let (family, mut id) = match own.ip() {
        IpAddr::V4(_) => (AF_INET, SocketId::new_v4()),
        IpAddr::V6(_) => (AF_INET6, SocketId::new_v6()),
    };
    id.source_address = own.ip();
    id.source_port = own.port();
    if let Some(peer) = peer {
        id.destination_address = peer.ip();
        id.destination_port = peer.port();
    }
    id.cookie = NO_COOKIE;
    let query = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id: id,
    });
    match netlink.ask(query, 0) {
        Ok(Some(SockDiagMessage::InetResponse(response))) => Ok(Some(response.header.state)),
        Ok(_) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_found_by_address_and_port() {
        // In the test's own namespace, because entering one by setns requires CAP_SYS_ADMIN.
        let listeners = Listeners {
            netlink: Netlink::new(NETLINK_SOCK_DIAG).expect("a socket"),
        };
        // On a separate address, so that no other test uses the port.
        let listener = TcpListener::bind("127.0.0.4:0").expect("bind");
        let to = listener.local_addr().expect("address");
        assert!(listeners.has(to).expect("an answer"));
        let another = SocketAddr::new([127, 0, 0, 5].into(), to.port());
        assert!(!listeners.has(another).expect("an answer"));
        drop(listener);
        assert!(!listeners.has(to).expect("an answer"));
        // A listener on all addresses of both families.
        let Ok(listener) = TcpListener::bind("[::]:0") else {
            return; // a machine without IPv6
        };
        let port = listener.local_addr().expect("address").port();
        for address in ["127.0.0.5", "::1"] {
            let to = SocketAddr::new(address.parse().expect("an address"), port);
            assert!(listeners.has(to).expect("an answer"), "{to}");
        }
    }
}
