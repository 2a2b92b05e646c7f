//! Who listens in a network namespace (sock_diag(7)).

use std::collections::BTreeSet;
use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use crate::kernel::netns::Netns;

/// The TCP ports on which anything listens in `netns`, on any address.
///
/// # Errors
/// Those of `setns` and netlink.
pub fn listening_ports(netns: &Netns) -> io::Result<BTreeSet<u16>> {
    let mut socket = netns.within(|| Socket::new(NETLINK_SOCK_DIAG))??;
    let _ = socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut ports = BTreeSet::new();
    for (family, id) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut packet = NetlinkMessage::new(
            header,
            SockDiagMessage::InetRequest(InetRequest {
                family,
                protocol: IPPROTO_TCP,
                extensions: ExtensionFlags::empty(),
                states: StateFlags::LISTEN,
                socket_id: id,
            })
            .into(),
        );
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        let _ = socket.send(&buffer, 0)?;
        loop {
            match read_dump(&socket, &mut ports) {
                Ok(true) => {}
                Ok(false) => break,
                // A kernel without IPv6 has no such sockets.
                Err(error) if family == AF_INET6 && error.raw_os_error() == Some(libc::ENOENT) => {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(ports)
}

/// Reads one datagram of a dump; false when it was the last.
fn read_dump(socket: &Socket, ports: &mut BTreeSet<u16>) -> io::Result<bool> {
    let (datagram, _) = socket.recv_from_full()?;
    let mut rest = &datagram[..];
    while !rest.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                let _ = ports.insert(response.header.socket_id.source_port);
            }
            NetlinkPayload::Done(_) => return Ok(false),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            _ => {}
        }
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length.max(1)..).unwrap_or_default();
    }
    Ok(true)
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
