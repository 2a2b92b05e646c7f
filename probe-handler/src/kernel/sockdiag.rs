//! Who listens in a network namespace (sock_diag(7)).

use std::collections::BTreeSet;
use std::io;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::kernel::netlink::Netlink;
use crate::kernel::netns::Netns;

/// The TCP ports on which anything listens in `netns`, on any address.
///
/// # Errors
/// Those of `setns` and netlink.
pub fn listening_ports(netns: &Netns) -> io::Result<BTreeSet<u16>> {
    let netlink = Netlink::within(netns, NETLINK_SOCK_DIAG)?;
    let mut ports = BTreeSet::new();
    for (family, id) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        let listeners = SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id: id,
        });
        let dump = netlink.dump(listeners, |message| {
            if let SockDiagMessage::InetResponse(response) = message {
                let _ = ports.insert(response.header.socket_id.source_port);
            }
        });
        match dump {
            // A kernel without IPv6 has no such sockets.
            Err(error) if family == AF_INET6 && error.raw_os_error() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_by_its_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let Ok(own) = Netns::current() else {
            panic!("own namespace")
        };
        match listening_ports(&own) {
            Ok(ports) => assert!(ports.contains(&port), "{port} in {ports:?}"),
            // Entering even one's own namespace needs CAP_SYS_ADMIN.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
