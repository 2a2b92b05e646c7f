//! The canary dial: proves that our dials pass the mesh's rules in a pod, and measures the cost of one.
//!
//! A dial to a port without a listener in the pod must be refused. If it is accepted, a rule captured it,
//! and would capture every check too: the check's result would be the mesh's, not the app's.
//!
//! The packets of a dial traverse the pod's netfilter rules within our system call. A pod can have so many rules that
//! a dial uses a lot of processor time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::Socket;
use tokio::net::TcpStream;

use crate::cputime::thread_cpu_time;
use crate::netns::Netns;
use crate::sockdiag::Listeners;
use probe::dial::Dial;

/// The result of a canary dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Canary {
    /// Refused, as required.
    Passed,
    /// Accepted: a rule captures our dials.
    Captured {
        /// The dialled port, which has no listener in the pod.
        port: u16,
    },
    /// The mesh does not listen on the port to which its rules redirect: a refusal would prove nothing.
    MeshSilent {
        /// That port.
        port: u16,
    },
    /// Inconclusive; the reason.
    Unproven(String),
}

/// The maximum duration of a dial inside a pod.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Above the default ephemeral range, so that a dial can't connect to itself.
const CANDIDATES: std::ops::RangeInclusive<u16> = 61_000..=65_535;
/// The distance between candidates: apps that listen on many ports use neighbouring ones.
const STEP: usize = 71;
/// The maximum number of candidates that are dialled.
const DIALS: usize = 2;

/// The maximum processor time that a dial inside a pod may cost. A typical dial, through Istio's rules, takes 21 to 208 µs,
/// median 47 µs (250 pods, a release build on two busy processors).
pub const BEARABLE: Duration = Duration::from_millis(20);

/// The plan for a canary dial, made without dialling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Dial these in order until one is not accepted: an app may have started to listen on the first one since the
    /// query, but is unlikely to listen on the second one too.
    Dial(Vec<SocketAddr>),
    /// A dial would prove nothing: this is the canary's result.
    None(Canary),
}

/// Chooses ports without a listener in `netns` on which to dial `addresses`. `mesh_port` returns the port to which the mesh
/// redirects inbound connections to an address: as long as nothing listens there, a refusal proves nothing.
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
    let why = format!("cannot query the pod's listeners: {error}");
    Plan::None(Canary::Unproven(why))
}

/// Ports at `address` without a listener, to be dialled one after another: an app may have started to listen on the first
/// one since the query, but is unlikely to listen on the second one too.
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
        return Ok(Plan::None(Canary::MeshSilent { port }));
    }
    let to = free_ports(address, has_listener)?;
    Ok(match to.is_empty() {
        true => {
            let why = "every candidate port has a listener".to_owned();
            Plan::None(Canary::Unproven(why))
        }
        false => Plan::Dial(to),
    })
}

/// A dial that was started, and has usually completed.
pub struct StartedDial {
    /// Its outcome so far.
    pub outcome: Outcome,
    /// The processor time that it cost.
    pub cost: Duration,
}

/// The outcome of starting a dial.
pub enum Outcome {
    /// The dial has completed, with this result.
    Is(Canary),
    /// Accepted, over this socket. Closing it sends packets through the pod's rules.
    Accepted(Socket),
    /// No answer yet.
    Waits(Socket),
}

/// Starts to dial `to`. The packets traverse the pod's rules before this returns, which can't be interrupted.
pub fn begin(dialer: &dyn Dial, to: SocketAddr) -> StartedDial {
    let first = begin_once(dialer, to);
    if first.cost <= BEARABLE {
        return first;
    }
    // Other packets may have arrived meanwhile and been charged to this thread, which seldom happens twice.
    let second = begin_once(dialer, to);
    StartedDial {
        cost: first.cost.min(second.cost),
        ..second
    }
}

fn begin_once(dialer: &dyn Dial, to: SocketAddr) -> StartedDial {
    let before = thread_cpu_time();
    let outcome = connect(dialer, to).unwrap_or_else(|error| Outcome::Is(judge(to, &error)));
    StartedDial {
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

/// Waits for the answer to a dial; returns the socket, because closing it may be costly.
///
/// # Errors
/// The result of the dial, if it was not accepted.
pub async fn answer(socket: Socket, to: SocketAddr) -> Result<Socket, Canary> {
    let failed = |error: io::Error| judge(to, &error);
    let stream = TcpStream::from_std(socket.into()).map_err(failed)?;
    let answered = tokio::time::timeout(TIMEOUT, stream.writable());
    answered
        .await
        .map_err(|_| {
            Canary::Unproven(format!(
                "dial to {to} inside the pod: no answer within {TIMEOUT:?}"
            ))
        })?
        .map_err(failed)?;
    match stream.take_error().map_err(failed)? {
        Some(error) => Err(failed(error)),
        None => Ok(stream.into_std().map_err(failed)?.into()),
    }
}

/// The result of a dial to `to` that was accepted over `socket`.
pub fn accepted(socket: &Socket, to: SocketAddr) -> Canary {
    let own = socket.local_addr().ok();
    // Without a listener, TCP connects a socket to itself if the kernel chose that port as its source port.
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
        let silent = planned(Some(15_006), &[65_535]);
        assert_eq!(silent, Plan::None(Canary::MeshSilent { port: 15_006 }));
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let unproven = planned(None, &all);
        assert!(matches!(unproven, Plan::None(Canary::Unproven(_))));
        // However many listeners there are, few candidates are queried.
        let mut queried = 0;
        let _none = plan(address, None, |_| {
            queried += 1;
            Ok(true)
        });
        assert!(queried <= 64, "{queried}");
    }

    /// Dials without binding a source address.
    struct Plain;

    impl Dial for Plain {
        fn socket(&self, _to: SocketAddr) -> io::Result<Socket> {
            Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)
        }
    }

    #[test]
    fn a_dial_within_one_machine_completes_immediately() {
        // On a separate address, so that no other test uses the port.
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
