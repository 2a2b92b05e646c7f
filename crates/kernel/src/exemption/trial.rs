//! The trial connection: proof that our rules in a pod keep a connection from the node out of the mesh's redirect.
//!
//! It goes from the node, as the kubelet's do, to a port on which nothing in the pod listens, and is noted as exempt by
//! hand. It must be refused, and its SYN must have met our rules. Accepted, it was captured by the mesh; not met, its
//! addresses were changed on the way, and so would be the kubelet's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpSocket;

use crate::canary::free_ports;
use crate::maps::ConnectingMap;
use crate::netns::Netns;
use crate::sockdiag::Listeners;

/// What the trial connection showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// Refused by the pod's own kernel, as it must be.
    Passed,
    /// Accepted: the mesh's rules capture it all the same.
    Captured {
        /// The port, on which nothing in the pod listens.
        port: u16,
    },
    /// It did not meet our rules with the addresses that it had when it left.
    NotMet,
    /// Nothing is proven; why.
    Unproven(String),
}

/// The most that a trial may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Tries `address` of the pod in `netns`, from the calling thread's namespace.
pub async fn trial(netns: &Netns, connecting: &Arc<ConnectingMap>, address: IpAddr) -> Trial {
    let free = Listeners::of(netns)
        .and_then(|listeners| free_ports(address, |candidate| listeners.has(candidate)));
    let free = match free {
        Ok(free) => free,
        Err(error) => {
            return Trial::Unproven(format!("cannot ask for the pod's listeners: {error}"));
        }
    };
    let mut result = Trial::Unproven("every candidate port has a listener".to_owned());
    // An app may have begun to listen on the first port since we looked: two can't have.
    for to in free {
        result = try_one(connecting, to).await;
        if !matches!(result, Trial::Captured { .. }) {
            return result;
        }
    }
    result
}

async fn try_one(connecting: &Arc<ConnectingMap>, to: SocketAddr) -> Trial {
    let prepared = socket(to).and_then(|(socket, source)| {
        let noted = Noted::new(Arc::clone(connecting), source, to)?;
        Ok((socket, noted))
    });
    let (socket, noted) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return Trial::Unproven(format!("cannot try {to} from the node: {error}")),
    };
    let connected = tokio::time::timeout(TIMEOUT, socket.connect(to)).await;
    let outcome = connected.map(|connected| connected.map(drop));
    judge(to, outcome.ok(), noted.end())
}

/// What follows from how the connection ended (none: not at all in time), and from whether our rules met its SYN.
fn judge(to: SocketAddr, outcome: Option<io::Result<()>>, met: bool) -> Trial {
    match outcome {
        Some(Ok(())) => Trial::Captured { port: to.port() },
        Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused && met => {
            Trial::Passed
        }
        Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Trial::NotMet,
        Some(Err(error)) => Trial::Unproven(format!("trial connection to {to}: {error}")),
        None => Trial::Unproven(format!(
            "trial connection to {to}: no answer in {TIMEOUT:?}"
        )),
    }
}

/// A socket that has its source address and port, as a connection to `to` would have them.
fn socket(to: SocketAddr) -> io::Result<(TcpSocket, SocketAddr)> {
    let any = match to {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // Sends nothing: the kernel looks for the route.
    let probe = UdpSocket::bind(SocketAddr::new(any, 0))?;
    probe.connect(to)?;
    let source = SocketAddr::new(probe.local_addr()?.ip(), 0);
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.bind(source)?;
    let source = socket.local_addr()?;
    Ok((socket, source))
}

/// A connection that is noted as exempt, for no longer than this lives: left behind, it would be another's.
struct Noted {
    connecting: Arc<ConnectingMap>,
    source: SocketAddr,
    to: SocketAddr,
}

impl Noted {
    fn new(connecting: Arc<ConnectingMap>, source: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        connecting.record(source, to)?;
        Ok(Self {
            connecting,
            source,
            to,
        })
    }

    /// Ends it; tells whether our rules met the SYN.
    fn end(&self) -> bool {
        match self.connecting.forget(self.source, self.to) {
            Ok(met) => met,
            Err(error) => {
                tracing::error!(
                    source = %self.source, to = %self.to, %error,
                    "a trial connection stays exempt for two seconds"
                );
                false
            }
        }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        // Without an entry this does nothing.
        let _met = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(outcome: Option<io::Result<()>>, met: bool) -> Trial {
        judge(SocketAddr::from(([10, 0, 0, 5], 65_535)), outcome, met)
    }

    #[test]
    fn only_a_refusal_that_met_our_rules_passes() {
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
