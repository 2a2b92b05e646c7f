//! Addresses and ports in the format of the maps.

/// An IPv6 address (IPv4 as `::ffff:a.b.c.d`) in network byte order and a port in host byte order.
///
/// Key of `ENDPOINTS`, part of the key of `FLOWS`. With one format for both families an IPv4-mapped
/// connection and a plain IPv4 connection find the same entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SockAddr {
    /// The address as four words, each in network byte order (as `bpf_sock_addr.user_ip6`).
    pub ip: [u32; 4],
    /// The port, host byte order, 1 to 65535.
    pub port: u32,
}

const _: () = assert!(size_of::<SockAddr>() == 20);

// SAFETY: `SockAddr` is `repr(C)`, contains only `u32`, 20 bytes without padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for SockAddr {}

/// The third word of every IPv4-mapped address.
const MAPPED_PREFIX: u32 = 0x0000_ffff_u32.to_be();

impl SockAddr {
    /// From an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn v4(ip: u32, port: u16) -> Self {
        Self {
            ip: [0, 0, MAPPED_PREFIX, ip],
            port: port as u32,
        }
    }

    /// From an IPv6 address (IPv4-mapped included) in network byte order.
    #[inline(always)]
    pub const fn v6(ip: [u32; 4], port: u16) -> Self {
        Self {
            ip,
            port: port as u32,
        }
    }

    /// The IPv4 address in network byte order, if this is one.
    #[inline(always)]
    pub const fn as_v4(&self) -> Option<u32> {
        if self.ip[0] == 0 && self.ip[1] == 0 && self.ip[2] == MAPPED_PREFIX {
            Some(self.ip[3])
        } else {
            None
        }
    }
}

#[cfg(feature = "user")]
impl From<core::net::SocketAddr> for SockAddr {
    fn from(address: core::net::SocketAddr) -> Self {
        let octets = match address.ip() {
            core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(v6) => v6.octets(),
        };
        let mut ip = [0; 4];
        for (word, bytes) in ip.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self {
            ip,
            port: address.port().into(),
        }
    }
}

#[cfg(feature = "user")]
impl From<SockAddr> for core::net::SocketAddr {
    /// Converts IPv4-mapped addresses to IPv4.
    fn from(address: SockAddr) -> Self {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(address.ip) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        let ip = core::net::Ipv6Addr::from(octets).to_canonical();
        Self::new(ip, address.port as u16)
    }
}

#[cfg(all(test, feature = "user"))]
mod tests {
    extern crate std;

    use super::*;
    use core::net::SocketAddr;
    use std::string::ToString;

    #[track_caller]
    fn round_trip(text: &str, back: &str) {
        let address: SocketAddr = text.parse().expect("address");
        assert_eq!(SocketAddr::from(SockAddr::from(address)).to_string(), back);
    }

    #[test]
    fn addresses_survive_conversion_to_the_map_format() {
        round_trip("10.1.2.3:8080", "10.1.2.3:8080");
        round_trip("[fd00::1]:65535", "[fd00::1]:65535");
        round_trip("[::ffff:10.1.2.3]:80", "10.1.2.3:80");
        round_trip("[::1]:1", "[::1]:1");
    }

    #[test]
    fn the_programs_and_the_daemon_use_one_format_for_ipv4() {
        let from_kernel = SockAddr::v4(u32::from_ne_bytes([10, 1, 2, 3]), 8080);
        let from_user = SockAddr::from("10.1.2.3:8080".parse::<SocketAddr>().expect("address"));
        assert_eq!(from_kernel, from_user);
        assert_eq!(from_kernel.as_v4(), Some(u32::from_ne_bytes([10, 1, 2, 3])));
        let v6 = SockAddr::from("[fd00::1]:80".parse::<SocketAddr>().expect("address"));
        assert_eq!(v6.as_v4(), None);
    }
}
