//! Reads conntrack's entry of a connection in a network namespace (linux/netfilter/nfnetlink_conntrack.h).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::exemption::message::{Attributes, attribute, request};
use crate::netlink::Netlink;
use crate::netns::Netns;

/// `NFNL_SUBSYS_CTNETLINK`, with `IPCTNL_MSG_CT_GET`, and with `IPCTNL_MSG_CT_NEW`, the type of an answer.
const GET: u16 = 1 << 8 | 1;
const NEW: u16 = 1 << 8;
/// `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// The lengths of the netlink header, and of it and the nfnetlink header.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;
/// Of `enum ctattr_type`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
/// Of `enum ctattr_tuple`.
const ADDRESSES: u16 = 1;
const PORTS: u16 = 2;
/// Of `enum ctattr_l4proto`.
const PROTOCOL: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const TCP: u8 = 6;

/// Whether the kernel lacks this interface. Each further request would make it run modprobe again.
static IS_MISSING: AtomicBool = AtomicBool::new(false);

/// The conntrack entries of a network namespace.
pub(crate) struct Conntrack(Netlink);

impl Conntrack {
    /// Opens a socket in `netns` for queries.
    ///
    /// # Errors
    /// `Unsupported` if the kernel lacks the interface; those of `setns`, `socket` and `connect`.
    pub fn of(netns: &Netns) -> io::Result<Self> {
        if IS_MISSING.load(Ordering::Relaxed) {
            return Err(unsupported());
        }
        Netlink::within(netns, NETLINK_NETFILTER).map(Self)
    }

    /// The address and port that answer the TCP connection from `source` to `destination`: it differs from `destination` if
    /// NAT redirects the connection. `None` if conntrack has no entry of it.
    ///
    /// # Errors
    /// `Unsupported` if the kernel lacks the interface; those of netlink.
    pub fn answering(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> io::Result<Option<SocketAddr>> {
        let answer = self.0.exchange(&query(source, destination))?;
        let answering = read(&answer);
        // nfnetlink's answer to a message for a subsystem that it does not have.
        if matches!(&answering, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
            IS_MISSING.store(true, Ordering::Relaxed);
            return Err(unsupported());
        }
        answering
    }
}

fn unsupported() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "the kernel has no nf_conntrack_netlink",
    )
}

fn query(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    const NLM_F_NONE: u16 = 0;
    let family = match source {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    request(GET, NLM_F_NONE, family as u8, |query| {
        query.nest(ORIGINAL, |tuple| {
            tuple.nest(ADDRESSES, |addresses| {
                address(addresses, 0, source.ip());
                address(addresses, 1, destination.ip());
            });
            tuple.nest(PORTS, |ports| {
                ports.bytes(PROTOCOL, &[TCP]);
                ports.bytes(SOURCE_PORT, &source.port().to_be_bytes());
                ports.bytes(DESTINATION_PORT, &destination.port().to_be_bytes());
            });
        });
    })
}

/// Adds an attribute of `enum ctattr_ip`: the source (0) or the destination (1).
fn address(attributes: &mut Attributes<'_>, which: u16, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => attributes.bytes(1 + which, &ip.octets()),
        IpAddr::V6(ip) => attributes.bytes(3 + which, &ip.octets()),
    }
}

/// The source of the reply direction in the kernel's answer.
fn read(answer: &[u8]) -> io::Result<Option<SocketAddr>> {
    let truncated = || io::Error::from(io::ErrorKind::InvalidData);
    let kind = answer.get(4..6).ok_or_else(truncated)?;
    match u16::from_ne_bytes([kind[0], kind[1]]) {
        ERROR => {
            let code = answer.get(HEADER..HEADER + 4).ok_or_else(truncated)?;
            let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
            match code.saturating_neg() {
                libc::ENOENT => Ok(None),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        }
        NEW => {
            let attributes = answer.get(HEADERS..).unwrap_or_default();
            replying(attributes).map(Some).ok_or_else(truncated)
        }
        _ => Err(truncated()),
    }
}

fn replying(attributes: &[u8]) -> Option<SocketAddr> {
    let tuple = attribute(attributes, REPLY)?;
    let addresses = attribute(tuple, ADDRESSES)?;
    let port = attribute(attribute(tuple, PORTS)?, SOURCE_PORT)?;
    let port = u16::from_be_bytes(port.try_into().ok()?);
    let v4 = attribute(addresses, 1).and_then(|ip| <[u8; 4]>::try_from(ip).ok());
    let v6 = attribute(addresses, 3).and_then(|ip| <[u8; 16]>::try_from(ip).ok());
    let ip = v4.map(|ip| Ipv4Addr::from(ip).into());
    let ip: IpAddr = ip.or_else(|| v6.map(|ip| Ipv6Addr::from(ip).into()))?;
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's answer about a connection whose replies come from `from`.
    fn answer(from: SocketAddr) -> Vec<u8> {
        request(NEW, 0, 2, |answer| {
            answer.nest(ORIGINAL, |_| {});
            answer.nest(REPLY, |tuple| {
                tuple.nest(ADDRESSES, |addresses| {
                    address(addresses, 0, from.ip());
                });
                tuple.nest(PORTS, |ports| {
                    ports.bytes(PROTOCOL, &[TCP]);
                    ports.bytes(SOURCE_PORT, &from.port().to_be_bytes());
                });
            });
        })
    }

    fn refusal(errno: i32) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        bytes.extend((-errno).to_ne_bytes());
        bytes
    }

    #[test]
    fn the_source_of_the_reply_is_what_answers() {
        for from in ["10.0.0.5:15006", "[fd00::5]:8080"] {
            let from = from.parse().expect("an address");
            assert_eq!(read(&answer(from)).expect("an answer"), Some(from));
        }
    }

    #[test]
    fn a_connection_without_an_entry_is_no_error() {
        assert_eq!(read(&refusal(libc::ENOENT)).expect("an answer"), None);
        let error = read(&refusal(libc::EPERM)).expect_err("an error");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn a_truncated_answer_is_an_error() {
        let whole = answer("10.0.0.5:15006".parse().expect("an address"));
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
    }
}
