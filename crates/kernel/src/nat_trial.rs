//! Finds out where a pod's NAT rules redirect a connection from the node to one of its ports.
//!
//! A connection that is not exempt from the mesh's redirect is opened, and conntrack's entry of it in the pod is read: what
//! answers is the mesh, the port itself, or something to which the pod's own rules redirect the port. The connection is then
//! reset, so that it leaves no port in TIME_WAIT.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::canary::free_ports;
use crate::conntrack::Conntrack;
use crate::netns::Netns;
use crate::sockdiag::Listeners;

/// Where a pod's NAT rules redirect a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirection {
    /// To the port itself, or to the mesh.
    AsExpected,
    /// To this address and port, by the pod's own rules.
    Elsewhere(SocketAddr),
    /// It was refused or not answered, or conntrack can't be read.
    Unknown,
}

/// A connection that was started. The pod has usually answered it already.
#[derive(Debug)]
pub struct StartedTrial {
    to: SocketAddr,
    socket: Socket,
}

/// Opens a connection to each of `ports`, from the calling thread's namespace. The packets pass through the pod's rules
/// before this returns.
pub fn begin(ports: &[SocketAddr]) -> Vec<StartedTrial> {
    let begun = ports.iter().map(|to| begin_one(*to));
    begun.filter_map(Result::ok).collect()
}

fn begin_one(to: SocketAddr) -> io::Result<StartedTrial> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None)?;
    // close() sends a reset.
    socket.set_linger(Some(Duration::ZERO))?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(StartedTrial { to, socket }),
    }
}

impl StartedTrial {
    /// Whether the connection has been neither accepted nor refused yet.
    pub fn is_pending(&self) -> bool {
        self.socket.peer_addr().is_err() && matches!(self.socket.take_error(), Ok(None))
    }

    /// The connection's local address, if it was accepted.
    fn accepted(&self) -> Option<SocketAddr> {
        let _peer = self.socket.peer_addr().ok()?;
        self.socket.local_addr().ok()?.as_socket()
    }
}

/// Closes the connections, and returns where the rules of the pod in `netns` redirected them. `mesh_port` is the port on
/// which the mesh accepts connections to an address.
///
/// # Errors
/// Conntrack can't be read.
pub fn conclude(
    netns: &Netns,
    begun: Vec<StartedTrial>,
    mesh_port: impl Fn(IpAddr) -> Option<u16>,
) -> io::Result<Vec<(SocketAddr, Redirection)>> {
    let conntrack = Conntrack::of(netns)?;
    let answering = |begun: &StartedTrial| match begun.accepted() {
        Some(source) => conntrack.answering(source, begun.to).map(|answering| {
            // Without an entry there is no NAT.
            Some(answering.unwrap_or(begun.to))
        }),
        None => Ok(None),
    };
    let mut led = Vec::with_capacity(begun.len());
    for begun in begun {
        let to = begun.to;
        let result = judge(to, answering(&begun)?, mesh_port(to.ip()), || {
            let unused = free_port(netns, to.ip())?;
            match begin(&[unused]).pop() {
                Some(reference) if reference.is_pending() => None,
                Some(reference) => Some(match answering(&reference).ok()? {
                    Some(by) if by == unused => Reference::AcceptedItself,
                    Some(by) => Reference::AcceptedBy(by),
                    None => Reference::Refused,
                }),
                None => Some(Reference::Refused),
            }
        });
        led.push((to, result));
    }
    Ok(led)
}

fn free_port(netns: &Netns, address: IpAddr) -> Option<SocketAddr> {
    let listeners = Listeners::of(netns).ok()?;
    let free = free_ports(address, |candidate| listeners.has(candidate)).ok()?;
    free.first().copied()
}

/// What happens to a connection to a port on which nothing listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reference {
    Refused,
    /// By NAT: a mesh whose settings are not in the Pod redirects all ports to this one.
    AcceptedBy(SocketAddr),
    /// Without NAT: a mesh captures all ports by TPROXY, before NAT rules apply.
    AcceptedItself,
}

/// Where a connection to `to` is redirected. `answering` is the address and port that accepted it, if any. `reference`
/// returns what happens to a connection to an unused port; `None` if that is not known.
fn judge(
    to: SocketAddr,
    answering: Option<SocketAddr>,
    mesh_port: Option<u16>,
    reference: impl FnOnce() -> Option<Reference>,
) -> Redirection {
    let Some(answering) = answering else {
        return Redirection::Unknown;
    };
    let mesh = mesh_port.map(|port| SocketAddr::new(to.ip(), port));
    if answering == to || Some(answering) == mesh {
        return Redirection::AsExpected;
    }
    match reference() {
        Some(Reference::AcceptedItself) => Redirection::AsExpected,
        Some(Reference::AcceptedBy(mesh)) if mesh == answering => Redirection::AsExpected,
        Some(Reference::AcceptedBy(_) | Reference::Refused) => Redirection::Elsewhere(answering),
        None => Redirection::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address and a port")
    }

    /// Where a connection to port 80 is redirected, given what answers it and what happens to a connection to an
    /// unused port.
    fn led(answering: &str, reference: Option<Reference>) -> Redirection {
        let reference = || reference;
        judge(
            at("10.0.0.5:80"),
            Some(at(answering)),
            Some(15_006),
            reference,
        )
    }

    #[test]
    fn neither_the_port_itself_nor_the_mesh_is_the_pods_own_redirect() {
        let by_mesh = Some(Reference::AcceptedBy(at("10.0.0.5:15006")));
        assert_eq!(led("10.0.0.5:80", by_mesh), Redirection::AsExpected);
        assert_eq!(led("10.0.0.5:15006", by_mesh), Redirection::AsExpected);
    }

    #[test]
    fn another_port_or_address_is_the_pods_own_redirect() {
        let by_mesh = Reference::AcceptedBy(at("10.0.0.5:15006"));
        for reference in [by_mesh, Reference::Refused] {
            for answering in ["10.0.0.5:8080", "172.17.0.2:80"] {
                let elsewhere = Redirection::Elsewhere(at(answering));
                assert_eq!(led(answering, Some(reference)), elsewhere);
            }
        }
    }

    #[test]
    fn a_port_to_which_all_others_are_redirected_is_the_meshs() {
        let all = Some(Reference::AcceptedBy(at("10.0.0.5:15106")));
        assert_eq!(led("10.0.0.5:15106", all), Redirection::AsExpected);
    }

    #[test]
    fn a_redirect_behind_a_mesh_that_captures_without_nat_has_no_effect() {
        let captured = Some(Reference::AcceptedItself);
        assert_eq!(led("10.0.0.5:8080", captured), Redirection::AsExpected);
    }

    #[test]
    fn what_is_not_answered_is_unknown() {
        let unused = || -> Option<Reference> { panic!("a connection to an unused port") };
        let refused = judge(at("10.0.0.5:80"), None, Some(15_006), unused);
        assert_eq!(refused, Redirection::Unknown);
        assert_eq!(led("10.0.0.5:8080", None), Redirection::Unknown);
    }

    #[test]
    fn a_connection_leaves_no_port_in_use() {
        let listener = std::net::TcpListener::bind("127.0.0.6:0").expect("bind");
        let to = listener.local_addr().expect("address");
        let begun = begin(&[to]).pop().expect("a connection");
        assert!(!begun.is_pending());
        let source = begun.accepted().expect("accepted");
        drop(begun);
        // A port in TIME_WAIT can't be bound without SO_REUSEADDR.
        let again = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        let bound = again.bind(&source.into());
        assert!(bound.is_ok(), "{source}: {bound:?}");
    }
}
