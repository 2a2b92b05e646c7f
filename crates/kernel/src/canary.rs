//! The canary dial: proof that our dials pass the mesh's rules in a pod, and what one costs.
//!
//! A dial to a port on which nothing in the pod listens must be refused. Accepted, it was captured by
//! some rule, and so would be every check: it would tell the mesh's opinion, not the app's.
//!
//! The packets of a dial pass the pod's own netfilter rules within our system call. A pod may have so many of them that
//! each dial takes the processor for as long as it likes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::Socket;
use tokio::net::TcpStream;

use crate::cputime::thread_cpu_time;
use crate::netns::Netns;
use crate::sockdiag::Listeners;
use probe::dial::Dial;

/// What the canary dial showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Canary {
    /// Refused, as it must be.
    Passed,
    /// Accepted: some rule captures our dials.
    Captured {
        /// The port dialled, on which nothing in the pod listens.
        port: u16,
    },
    /// Nothing is proven; why.
    Unproven(String),
}

/// The most that a dial inside one pod may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Above the default ephemeral range, so that a dial can't meet itself.
const CANDIDATES: std::ops::RangeInclusive<u16> = 61_000..=65_535;
/// Every how many of them counts: apps that listen on many ports do so on neighbouring ones.
const STEP: usize = 71;
/// How many of them are dialled at most.
const DIALS: usize = 2;

/// The most processor time that a dial inside a pod may cost. The usual one, through Istio's rules, takes 21 to 208 µs, 47 in
/// the middle (250 pods, a release build on two busy processors).
pub const BEARABLE: Duration = Duration::from_millis(20);

/// What a canary dial takes, found without dialling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// To dial these, in order, until one is not accepted: an app may have begun to listen on the first since we looked,
    /// two can't have.
    Dial(Vec<SocketAddr>),
    /// A dial would prove nothing; why.
    Unproven(String),
}

/// Looks into `netns` for ports on which to dial `addresses`. `mesh_port` is the port to which the mesh redirects inbound
/// connections to an address: as long as nothing listens there, a refusal proves nothing.
pub fn plans(
    netns: &Netns,
    addresses: &[IpAddr],
    mesh_port: impl Fn(IpAddr) -> Option<u16>,
) -> Vec<Plan> {
    if addresses.is_empty() {
        return Vec::new();
    }
    let listeners = match Listeners::of(netns) {
        Ok(listeners) => listeners,
        Err(error) => return vec![no_listeners(&error)],
    };
    let plan = |address: &IpAddr| {
        plan(*address, mesh_port(*address), |to| listeners.has(to))
            .unwrap_or_else(|error| no_listeners(&error))
    };
    addresses.iter().map(plan).collect()
}

fn no_listeners(error: &io::Error) -> Plan {
    Plan::Unproven(format!("cannot ask for the pod's listeners: {error}"))
}

/// Ports at `address` on which nothing listens, to be dialled one after another: an app may have begun to listen on the
/// first since it was looked at, but not on two.
///
/// # Errors
/// Those of `has_listener`.
pub(crate) fn free_ports(
    address: IpAddr,
    mut has_listener: impl FnMut(SocketAddr) -> io::Result<bool>,
) -> io::Result<Vec<SocketAddr>> {
    let mut free = Vec::new();
    for port in CANDIDATES.rev().step_by(STEP) {
        let candidate = SocketAddr::new(address, port);
        if !has_listener(candidate)? {
            free.push(candidate);
        }
        if free.len() == DIALS {
            break;
        }
    }
    Ok(free)
}

fn plan(
    address: IpAddr,
    mesh_port: Option<u16>,
    mut has_listener: impl FnMut(SocketAddr) -> io::Result<bool>,
) -> io::Result<Plan> {
    if let Some(port) = mesh_port
        && !has_listener(SocketAddr::new(address, port))?
    {
        let why = format!("the mesh does not listen on its port {port} yet");
        return Ok(Plan::Unproven(why));
    }
    let to = free_ports(address, has_listener)?;
    Ok(match to.is_empty() {
        true => Plan::Unproven("every candidate port has a listener".to_owned()),
        false => Plan::Dial(to),
    })
}

/// A dial that was begun, and has come to an end as a rule.
pub struct Begun {
    /// What came of it.
    pub outcome: Outcome,
    /// The processor time that it cost.
    pub cost: Duration,
}

/// What came of a dial's beginning.
pub enum Outcome {
    /// This is it.
    Is(Canary),
    /// Accepted, over this socket. To close it sends packets through the pod's rules.
    Accepted(Socket),
    /// There is no answer yet.
    Waits(Socket),
}

/// Begins to dial `to`. The packets pass the pod's rules before this returns, and none of that can be interrupted.
pub fn begin(dialer: &dyn Dial, to: SocketAddr) -> Begun {
    let first = begin_once(dialer, to);
    if first.cost <= BEARABLE {
        return first;
    }
    // Packets of others may have come in meanwhile, and been counted for us: they seldom do so twice.
    let second = begin_once(dialer, to);
    Begun {
        cost: first.cost.min(second.cost),
        ..second
    }
}

fn begin_once(dialer: &dyn Dial, to: SocketAddr) -> Begun {
    let before = thread_cpu_time();
    let outcome = connect(dialer, to).unwrap_or_else(|error| Outcome::Is(judge(to, &error)));
    Begun {
        outcome,
        cost: thread_cpu_time().saturating_sub(before),
    }
}

fn connect(dialer: &dyn Dial, to: SocketAddr) -> io::Result<Outcome> {
    let socket = dialer.socket(to)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    Ok(match socket.peer_addr() {
        Ok(_) => Outcome::Accepted(socket),
        Err(_) => Outcome::Waits(socket),
    })
}

/// Waits for the answer to a dial that has none yet; gives the socket back, for closing it may cost.
///
/// # Errors
/// What the dial proves, where it was not accepted.
pub async fn answer(socket: Socket, to: SocketAddr) -> Result<Socket, Canary> {
    let failed = |error: io::Error| judge(to, &error);
    let stream = TcpStream::from_std(socket.into()).map_err(failed)?;
    let answered = tokio::time::timeout(TIMEOUT, stream.writable());
    answered
        .await
        .map_err(|_| {
            Canary::Unproven(format!(
                "dial to {to} inside the pod: no answer in {TIMEOUT:?}"
            ))
        })?
        .map_err(failed)?;
    match stream.take_error().map_err(failed)? {
        Some(error) => Err(failed(error)),
        None => Ok(stream.into_std().map_err(failed)?.into()),
    }
}

/// What a dial to `to` proves that was accepted over `socket`.
pub fn accepted(socket: &Socket, to: SocketAddr) -> Canary {
    let own = socket.local_addr().ok();
    // With nobody listening there, TCP connects a socket to itself if it was given that very port.
    match own.and_then(|own| own.as_socket()) == Some(to) {
        true => Canary::Passed,
        false => Canary::Captured { port: to.port() },
    }
}

fn judge(to: SocketAddr, error: &io::Error) -> Canary {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Canary::Passed,
        _ => Canary::Unproven(format!("dial to {to} inside the pod: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use socket2::{Domain, Type};

    use super::*;

    #[test]
    fn a_dial_is_planned_to_ports_without_listeners_once_the_mesh_listens() {
        let address = IpAddr::from([10, 0, 0, 1]);
        let to = |port| SocketAddr::new(address, port);
        let planned = |mesh_port, listening: &[u16]| {
            let has = |to: SocketAddr| Ok(listening.contains(&to.port()));
            plan(address, mesh_port, has).expect("a plan")
        };
        let dial = Plan::Dial(vec![to(65_464), to(65_393)]);
        assert_eq!(planned(None, &[65_535]), dial);
        assert_eq!(planned(Some(15_006), &[15_006, 65_535]), dial);
        let unproven = planned(Some(15_006), &[65_535]);
        assert!(matches!(unproven, Plan::Unproven(_)), "{unproven:?}");
        let all: Vec<u16> = (0..=u16::MAX).collect();
        assert!(matches!(planned(None, &all), Plan::Unproven(_)));
        // However many there are, few are asked for.
        let mut asked = 0;
        let _none = plan(address, None, |_| {
            asked += 1;
            Ok(true)
        });
        assert!(asked <= 64, "{asked}");
    }

    /// Dials from wherever the kernel likes.
    struct Plain;

    impl Dial for Plain {
        fn socket(&self, _to: SocketAddr) -> io::Result<Socket> {
            Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)
        }
    }

    #[test]
    fn a_dial_within_one_machine_is_over_when_it_was_begun() {
        // On an address of its own: no other test takes the port.
        let listener = TcpListener::bind("127.0.0.3:0").expect("bind");
        let to = listener.local_addr().expect("address");
        let Outcome::Accepted(socket) = begin(&Plain, to).outcome else {
            panic!("not accepted");
        };
        assert_eq!(accepted(&socket, to), Canary::Captured { port: to.port() });
        drop((socket, listener));
        let refused = begin(&Plain, to);
        assert!(matches!(refused.outcome, Outcome::Is(Canary::Passed)));
        assert!(refused.cost < BEARABLE, "{:?}", refused.cost);
    }
}
