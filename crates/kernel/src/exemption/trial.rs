//! The trial connection: proves that the rules in a pod exempt a connection from the node from the mesh's redirect.
//!
//! It goes from the node, like the kubelet's connections, to a port without a listener in the pod, and the daemon records
//! it as exempt. It must be refused, and its SYN must have matched the rules. If it is accepted, the mesh captured it; if
//! its SYN did not match, its addresses were changed on the way, as the addresses of the kubelet's connections would be.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpSocket;

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

/// Makes trial connections to `address` of the pod in `netns`, from the calling thread's namespace.
pub async fn trial(netns: &Netns, connecting: &Arc<ConnectingMap>, address: IpAddr) -> Trial {
    let free = Listeners::of(netns)
        .and_then(|listeners| free_ports(address, |candidate| listeners.has(candidate)));
    let free = match free {
        Ok(free) => free,
        Err(error) => {
            return Trial::Unproven(format!("cannot query the pod's listeners: {error}"));
        }
    };
    let mut result = Trial::Unproven("every candidate port has a listener".to_owned());
    // An app may have started to listen on the first port since the query, but hardly on both.
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
        let guard = ExemptionGuard::new(Arc::clone(connecting), source, to)?;
        Ok((socket, guard))
    });
    let (socket, guard) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            return Trial::Unproven(format!(
                "cannot start a trial connection to {to} from the node: {error}"
            ));
        }
    };
    let connected = tokio::time::timeout(TIMEOUT, socket.connect(to)).await;
    let outcome = connected.map(|connected| connected.map(drop));
    judge(to, outcome.ok(), guard.end())
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
fn socket(to: SocketAddr) -> io::Result<(TcpSocket, SocketAddr)> {
    let any = match to {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // Sends nothing, but makes the kernel look up the route.
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
