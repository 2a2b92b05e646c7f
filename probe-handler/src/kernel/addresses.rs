//! Addresses: those of a pod's interfaces, and whose an address is on the node (rtnetlink(7)).
//!
//! Never by a list of all interfaces, as getifaddrs(3) makes it: on a node with many pods that takes the
//! kernel milliseconds, in which nobody else may change the network.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::kernel::netlink::Netlink;
use crate::kernel::netns::Netns;

/// What Istio puts on `lo` for its own use.
const ISTIOS: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// The addresses of the interfaces in `netns` that a probe could be sent to, sorted: neither loopback nor
/// link-local.
///
/// # Errors
/// Those of `setns` and netlink.
pub fn of_interfaces(netns: &Netns) -> io::Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    Netlink::within(netns, NETLINK_ROUTE)?.dump(all, |message| {
        if let RouteNetlinkMessage::NewAddress(message) = message {
            addresses.extend(own(&message));
        }
    })?;
    addresses.retain(can_be_probed);
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// The interface's own address: of a point-to-point interface the other one is its peer's.
fn own(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|one| match one {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|one| match one {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn can_be_probed(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && *v6 != ISTIOS,
    }
}

/// Whether the calling thread's namespace takes what it sends to `address` for itself: by its routes, as a
/// connection would find out.
///
/// # Errors
/// Those of netlink. That there is no route is none.
pub fn is_local(address: IpAddr) -> io::Result<bool> {
    let mut route = RouteMessage::default();
    let (family, length, destination) = match address {
        IpAddr::V4(v4) => (AddressFamily::Inet, 32, RouteAddress::Inet(v4)),
        IpAddr::V6(v6) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(v6)),
    };
    route.header.address_family = family;
    route.header.destination_prefix_length = length;
    route
        .attributes
        .push(RouteAttribute::Destination(destination));
    let answer = Netlink::new(NETLINK_ROUTE)?.ask(RouteNetlinkMessage::GetRoute(route), 0);
    match answer {
        Ok(Some(RouteNetlinkMessage::NewRoute(route))) => Ok(route.header.kind == RouteType::Local),
        Ok(_) => Err(io::Error::other("the kernel names no route")),
        Err(error) if leads_nowhere(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// No route, or one of type `unreachable`, `prohibit` or `blackhole` (Linux net/ipv4/fib_semantics.c
/// `fib_props`); a kernel without that family has none either.
fn leads_nowhere(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::EACCES
                | libc::EINVAL
                | libc::EAFNOSUPPORT
                | libc::EOPNOTSUPP
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_to_loopback_stays_here() {
        assert!(is_local("127.0.0.1".parse().unwrap()).unwrap());
        // Of a block for documentation (RFC 5737, RFC 3849).
        for elsewhere in ["192.0.2.1", "2001:db8::1"] {
            assert!(
                !is_local(elsewhere.parse().unwrap()).unwrap(),
                "{elsewhere}"
            );
        }
    }
}
