//! The trial connection: proves that the rules in a pod exempt a connection from the node from the mesh's redirect.
//!
//! It goes from the node, like the kubelet's connections, to a port without a listener in the pod, and the daemon records
//! it as exempt. It must be refused, and its SYN must have matched the rules. If it is accepted, the mesh captured it; if
//! its SYN did not match, its addresses were changed on the way, as the addresses of the kubelet's connections would be.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;

use crate::canary::free_ports;
use crate::maps::ConnectingMap;
use crate::netns::Netns;
use crate::sockdiag::Listeners;

/// The result of a trial connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// Refused in the pod's network namespace, as required.
    Passed,
    /// Accepted: the mesh's rules capture it despite the exemption.
    Captured {
        /// The port, which has no listener in the pod.
        port: u16,
    },
    /// No SYN with the connection's original addresses reached the rules.
    NotMet,
    /// Inconclusive; the reason.
    Unproven(String),
}

/// The maximum duration of a trial.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A trial connection that was started. The pod has usually answered it already.
pub struct Attempt {
    to: SocketAddr,
    socket: Socket,
    guard: ExemptionGuard,
    /// How it ended, if that is known already.
    ended: Option<io::Result<()>>,
}

/// Starts a trial connection to `address` of the pod in `netns`, from the calling thread's namespace. Its SYN passes through
/// the pod's rules before this returns. `number` is the number of the attempt: an app may have started to listen on the first
/// free port since the query, but is unlikely to listen on the second one too.
///
/// # Errors
/// The result, if no connection can be started.
pub fn begin(
    netns: &Netns,
    connecting: &Arc<ConnectingMap>,
    address: IpAddr,
    number: usize,
) -> Result<Attempt, Trial> {
    let free = Listeners::of(netns)
        .and_then(|listeners| free_ports(address, |candidate| listeners.has(candidate)))
        .map_err(|error| Trial::Unproven(format!("cannot query the pod's listeners: {error}")))?;
    let to = *free
        .get(number)
        .ok_or_else(|| Trial::Unproven("every candidate port has a listener".to_owned()))?;
    begin_to(connecting, to).map_err(|error| {
        Trial::Unproven(format!(
            "cannot start a trial connection to {to} from the node: {error}"
        ))
    })
}

fn begin_to(connecting: &Arc<ConnectingMap>, to: SocketAddr) -> io::Result<Attempt> {
    let (socket, source) = socket(to)?;
    let guard = ExemptionGuard::new(Arc::clone(connecting), source, to)?;
    let ended = match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => None,
        ended => Some(ended),
    };
    Ok(Attempt {
        to,
        socket,
        guard,
        ended,
    })
}

impl Attempt {
    /// Waits for the answer, for at most a second. Also returns the socket if it was accepted: closing it sends packets
    /// through the pod's rules.
    pub async fn answer(self) -> (Trial, Option<Socket>) {
        let Self {
            to,
            socket,
            guard,
            ended,
        } = self;
        let (ended, socket) = match ended {
            Some(ended) => (Some(ended), Some(socket)),
            None => match tokio::time::timeout(TIMEOUT, connected(socket)).await {
                Ok(Ok(socket)) => (Some(Ok(())), Some(socket)),
                Ok(Err(error)) => (Some(Err(error)), None),
                Err(_) => (None, None),
            },
        };
        let accepted = socket.filter(|_| matches!(ended, Some(Ok(()))));
        (judge(to, ended, guard.end()), accepted)
    }
}

/// Waits until a connection is established.
async fn connected(socket: Socket) -> io::Result<Socket> {
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream.into_std()?.into()),
    }
}

/// The result, from how the connection ended (`None`: timeout) and whether its SYN matched the rules.
fn judge(to: SocketAddr, outcome: Option<io::Result<()>>, matched: bool) -> Trial {
    match outcome {
        Some(Ok(())) => Trial::Captured { port: to.port() },
        Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused && matched => {
            Trial::Passed
        }
        Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Trial::NotMet,
        Some(Err(error)) => Trial::Unproven(format!("trial connection to {to}: {error}")),
        None => Trial::Unproven(format!(
            "trial connection to {to}: no answer within {TIMEOUT:?}"
        )),
    }
}

/// A socket that is bound to the source address that a connection to `to` would have, and to a free port.
fn socket(to: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let any = match to {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // Sends nothing, but makes the kernel look up the route.
    let probe = UdpSocket::bind(SocketAddr::new(any, 0))?;
    probe.connect(to)?;
    let source = SocketAddr::new(probe.local_addr()?.ip(), 0);
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None)?;
    socket.bind(&source.into())?;
    let source = socket.local_addr()?.as_socket();
    let source = source.ok_or_else(|| io::Error::other("a socket without an address"))?;
    Ok((socket, source))
}

/// A connection that is exempt until this is dropped: a leftover entry would exempt a later connection of another process.
struct ExemptionGuard {
    connecting: Arc<ConnectingMap>,
    source: SocketAddr,
    to: SocketAddr,
}

impl ExemptionGuard {
    fn new(connecting: Arc<ConnectingMap>, source: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        connecting.record(source, to)?;
        Ok(Self {
            connecting,
            source,
            to,
        })
    }

    /// Ends the exemption; returns whether the SYN matched the rules.
    fn end(&self) -> bool {
        match self.connecting.forget(self.source, self.to) {
            Ok(matched) => matched,
            Err(error) => {
                tracing::error!(
                    source = %self.source, to = %self.to, %error,
                    "cannot end the exemption of a trial connection: it expires after two seconds"
                );
                false
            }
        }
    }
}

impl Drop for ExemptionGuard {
    fn drop(&mut self) {
        // Without an entry this does nothing.
        let _matched = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(outcome: Option<io::Result<()>>, matched: bool) -> Trial {
        judge(SocketAddr::from(([10, 0, 0, 5], 65_535)), outcome, matched)
    }

    #[test]
    fn only_a_refused_connection_whose_syn_matched_the_rules_passes() {
        let refused = || Some(Err(io::ErrorKind::ConnectionRefused.into()));
        assert_eq!(judged(refused(), true), Trial::Passed);
        assert_eq!(judged(refused(), false), Trial::NotMet);
        assert_eq!(
            judged(Some(Ok(())), true),
            Trial::Captured { port: 65_535 },
            "the mesh accepted it"
        );
        let unreachable = Some(Err(io::ErrorKind::HostUnreachable.into()));
        assert!(matches!(judged(unreachable, true), Trial::Unproven(_)));
        assert!(matches!(judged(None, true), Trial::Unproven(_)));
    }
}
