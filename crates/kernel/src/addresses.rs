//! Lists the addresses of a pod's interfaces, and checks whether an address is the node's own (rtnetlink(7)).
//!
//! Never lists all of the node's interfaces, as getifaddrs(3) does: on a node with many pods that takes the
//! kernel milliseconds, during which no other process can change the network.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink::Netlink;
use crate::netns::Netns;

/// The address that Istio adds to `lo` for its own use.
const ISTIOS: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// The addresses of the interfaces in `netns` to which a probe could be sent, sorted: neither loopback nor
/// link-local. At most the first `most` addresses; no more of them are kept in memory.
///
/// # Errors
/// Those of `setns` and netlink.
pub fn of_interfaces(netns: &Netns, most: usize) -> io::Result<Vec<IpAddr>> {
    let mut addresses = BTreeSet::new();
    let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    Netlink::within(netns, NETLINK_ROUTE)?.dump(all, |message| {
        if let RouteNetlinkMessage::NewAddress(message) = message {
            addresses.extend(own(&message).filter(can_be_probed));
            if addresses.len() > most {
                let _last = addresses.pop_last();
            }
        }
    })?;
    Ok(addresses.into_iter().collect())
}

/// The interface's own address; a point-to-point interface also has its peer's address.
fn own(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|one| match one {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let own = local.or_else(|| {
        message.attributes.iter().find_map(|one| match one {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    });
    // The kubelet uses the IPv4 address for an IPv4-mapped one.
    own.map(|address| address.to_canonical())
}

fn can_be_probed(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && *v6 != ISTIOS,
    }
}

/// Looks up routes in one network namespace.
pub struct Routes {
    netlink: Netlink,
}

impl Routes {
    /// For the calling thread's namespace.
    ///
    /// # Errors
    /// Those of `socket` and `connect`.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            netlink: Netlink::new(NETLINK_ROUTE)?,
        })
    }

    /// Whether `address` is one of the namespace's own addresses.
    ///
    /// # Errors
    /// Those of netlink. A missing route is not an error.
    pub fn is_local(&self, address: IpAddr) -> io::Result<bool> {
        let mut route = RouteMessage::default();
        let (family, length, destination) = match address.to_canonical() {
            IpAddr::V4(v4) => (AddressFamily::Inet, 32, RouteAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(v6)),
        };
        route.header.address_family = family;
        route.header.destination_prefix_length = length;
        route
            .attributes
            .push(RouteAttribute::Destination(destination));
        let request = Query::Request(RouteNetlinkMessage::GetRoute(route));
        match self.netlink.ask(request, 0) {
            Ok(Some(Query::Answer(kind))) => Ok(kind == RouteType::Local),
            Ok(_) => Err(io::Error::other("the kernel returned no route")),
            Err(error) if leads_nowhere(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// No route, or one of type `unreachable`, `prohibit` or `blackhole` (Linux net/ipv4/fib_semantics.c `fib_props`), such as
/// Calico's route for a block of addresses, which applies until an address has its own route.
fn leads_nowhere(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
    )
}

/// A query for a route, or the type of the route in the answer. All other attributes of the route (encapsulation,
/// nexthops of an unknown kind) are ignored.
enum Query {
    Request(RouteNetlinkMessage),
    Answer(RouteType),
}

impl NetlinkSerializable for Query {
    fn message_type(&self) -> u16 {
        match self {
            Self::Request(request) => request.message_type(),
            Self::Answer(_) => libc::RTM_NEWROUTE,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Request(request) => NetlinkSerializable::buffer_len(request),
            Self::Answer(_) => 0,
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        if let Self::Request(request) = self {
            NetlinkSerializable::serialize(request, buffer);
        }
    }
}

impl NetlinkDeserializable for Query {
    type Error = io::Error;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> io::Result<Self> {
        // `rtm_type` of struct rtmsg, include/uapi/linux/rtnetlink.h.
        const TYPE: usize = 7;
        match payload.get(TYPE) {
            Some(kind) if header.message_type == libc::RTM_NEWROUTE => {
                Ok(Self::Answer(RouteType::from(*kind)))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_namespaces_own_addresses_are_local() {
        let routes = Routes::new().unwrap();
        let is_local = |text: &str| routes.is_local(text.parse().unwrap()).unwrap();
        assert!(is_local("127.0.0.1") && is_local("::ffff:127.0.0.1"));
        // From the address blocks for documentation (RFC 5737, RFC 3849).
        assert!(!is_local("192.0.2.1") && !is_local("2001:db8::1"));
        for own in nix::ifaddrs::getifaddrs().unwrap() {
            let Some(address) = own.address else { continue };
            if let Some(v4) = address.as_sockaddr_in() {
                assert!(is_local(&v4.ip().to_string()), "{own:?}");
            }
            if let Some(v6) = address.as_sockaddr_in6()
                && !v6.ip().is_unicast_link_local()
            {
                assert!(is_local(&v6.ip().to_string()), "{own:?}");
            }
        }
    }
}
