//! Spreads the kubelet's connections to the handler over source addresses and ports.
//!
//! Without a redirect, connections to each probed address and port can use the whole range of source ports. With one
//! handler address, all probes of the node would share one range, and a node that does not reuse ports in TIME_WAIT
//! would run out of them. So IPv4 connections use a source address in 127.0.0.0/8 that depends on the endpoint, and
//! IPv6 connections use one of several handler ports, because `::1` is the only IPv6 loopback address.

use crate::address::SockAddr;

/// The number of ports on which the handler listens on ::1.
pub const HANDLER_PORTS_V6: u16 = 16;

/// 127.0.0.0/8, host byte order.
const LOOPBACK: u32 = 0x7f00_0000;

/// A hash of an endpoint with few collisions: neighbouring addresses and ports differ in its upper bits too.
#[inline(always)]
const fn mix(endpoint: &SockAddr) -> u32 {
    let ip = u32::from_be(endpoint.ip[2]) ^ u32::from_be(endpoint.ip[3]);
    ip.wrapping_mul(0x0001_003f)
        .wrapping_add(endpoint.port)
        .wrapping_mul(0x9e37_79b1)
}

/// The source address of connections to `endpoint`, network byte order: in 127.0.0.0/8, outside 127.0.0.0/16 (which
/// operators and resolvers use) and 127.255.0.0/16.
#[inline(always)]
pub const fn source_v4(endpoint: &SockAddr) -> u32 {
    // The upper 8 bits select the second octet (1 to 254), the next 16 bits the last two octets.
    let mixed = mix(endpoint);
    let second = 1 + (mixed >> 24) % 254;
    let rest = (mixed >> 8) & 0xffff;
    (LOOPBACK | second << 16 | rest).to_be()
}

/// Which of the handler's `HANDLER_PORTS_V6` ports serves `endpoint`.
#[inline(always)]
pub const fn port_index(endpoint: &SockAddr) -> u32 {
    (mix(endpoint) >> 16) % HANDLER_PORTS_V6 as u32
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::collections::BTreeSet;

    fn endpoint(last: u8, port: u32) -> SockAddr {
        SockAddr {
            ip: [
                0,
                0,
                0xffff_u32.to_be(),
                u32::from_ne_bytes([10, 244, 1, last]),
            ],
            port,
        }
    }

    #[test]
    fn endpoints_of_a_node_have_different_source_addresses() {
        let mut sources = BTreeSet::new();
        for last in 2..=251 {
            for port in [80, 443, 8080, 8081, 9090, 15020] {
                let source = source_v4(&endpoint(last, port)).to_ne_bytes();
                assert_eq!(source[0], 127);
                assert!(source[1] != 0 && source[1] != 255, "{source:?}");
                let _new = sources.insert(source);
            }
        }
        assert!(sources.len() > 1_490, "{} of 1,500", sources.len());
    }

    #[test]
    fn endpoints_of_a_node_are_spread_over_all_ports() {
        let mut count = [0; HANDLER_PORTS_V6 as usize];
        for last in 2..=251 {
            for port in [80, 8080, 9090] {
                count[port_index(&endpoint(last, port)) as usize] += 1;
            }
        }
        // 750 endpoints: 47 each.
        assert!(
            count.iter().all(|count| (24..=94).contains(count)),
            "{count:?}"
        );
    }
}
