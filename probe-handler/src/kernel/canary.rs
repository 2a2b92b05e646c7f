//! The canary dial: proof that our dials pass the mesh's rules in a pod.
//!
//! A dial to a port on which nothing in the pod listens must be refused. Accepted, it was captured by
//! some rule, and so would be every check: it would tell the mesh's opinion, not the app's.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::check::dial::{Dial, dial};
use crate::kernel::netns::Netns;
use crate::kernel::sockdiag::listening_ports;

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

/// Dials `address` from inside `netns` on a port without a listener. `mesh_port` is the port to which the
/// mesh redirects inbound connections: as long as nothing listens there, a refusal proves nothing.
pub async fn canary(
    netns: &Netns,
    dialer: &dyn Dial,
    address: IpAddr,
    mesh_port: Option<u16>,
) -> Canary {
    let listening = match listening_ports(netns) {
        Ok(listening) => listening,
        Err(error) => return Canary::Unproven(format!("cannot list the pod's listeners: {error}")),
    };
    if let Some(port) = mesh_port.filter(|port| !listening.contains(port)) {
        return Canary::Unproven(format!("the mesh does not listen on its port {port} yet"));
    }
    let mut result = Canary::Unproven("every candidate port has a listener".to_owned());
    // An app may have begun to listen on the first port since we looked: two can't have.
    for port in free_ports(&listening).take(2) {
        result = dial_one(dialer, SocketAddr::new(address, port)).await;
        if !matches!(result, Canary::Captured { .. }) {
            return result;
        }
    }
    result
}

fn free_ports(listening: &BTreeSet<u16>) -> impl Iterator<Item = u16> + '_ {
    CANDIDATES.rev().filter(|port| !listening.contains(port))
}

async fn dial_one(dialer: &dyn Dial, to: SocketAddr) -> Canary {
    match tokio::time::timeout(TIMEOUT, dial(dialer, to)).await {
        Ok(Ok(_)) => Canary::Captured { port: to.port() },
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Canary::Passed,
        Ok(Err(error)) => Canary::Unproven(format!("dial to {to} inside the pod: {error}")),
        Err(_) => Canary::Unproven(format!(
            "dial to {to} inside the pod: no answer in {TIMEOUT:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canary_port_has_no_listener() {
        let listening = BTreeSet::from([65_535, 65_533, 80]);
        assert_eq!(
            free_ports(&listening).take(3).collect::<Vec<_>>(),
            [65_534, 65_532, 65_531]
        );
        assert_eq!(free_ports(&(0..=u16::MAX).collect()).count(), 0);
    }
}
