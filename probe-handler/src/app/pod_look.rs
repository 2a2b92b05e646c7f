//! Reads the state of a pod's network namespace: its addresses, its loopback interface, and the ports for a
//! canary dial.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::own_redirects::AT_ONCE;
use kernel::address_watch::AddressWatch;
use kernel::addresses::{self, Routes};
use kernel::canary::{Canary, Plan, plans};
use kernel::dial::localhost_of;
use kernel::loopback;
use kernel::netns::Netns;
use kernel::nsid::Nsids;
use kernel::sockdiag::Listeners;
use model::Pod;

/// Maximum number of addresses of a pod that are read, because a process that may configure its interfaces can
/// add any number.
const ADDRESSES: usize = 1024;

/// Why no dial is made.
pub const LO_DOWN: &str = "its loopback interface (lo) is down";

/// The state of a pod's network namespace.
pub(super) struct Seen {
    /// Its addresses, see [`pod_addresses`].
    pub(super) addresses: Vec<IpAddr>,
    /// Whether it is known for all addresses if they are the node's.
    pub(super) all: bool,
    /// Whether its loopback interface is up.
    pub(super) lo_up: bool,
    /// How to make a canary dial in each address family.
    pub(super) plans: Vec<Plan>,
    /// Probed ports of the app on which nothing listens, at the first address of each family; at most as many as are
    /// tried at once.
    pub(super) unheard: Vec<SocketAddr>,
}

/// Reads the state of a pod's network namespace. This takes long if the namespace contains much.
pub(super) fn look(netns: &Netns, pod: &Pod) -> io::Result<Seen> {
    let (addresses, all) = pod_addresses(netns)?;
    let lo_up = loopback::is_up(netns)?;
    let families = [
        addresses.iter().find(|ip| ip.is_ipv4()),
        addresses.iter().find(|ip| ip.is_ipv6()),
    ];
    let families = families.into_iter().flatten().copied();
    let unheard = unheard(netns, pod, families.clone());
    let families: Vec<IpAddr> = match pod.localhost {
        true => families.map(localhost_of).collect(),
        false => families.collect(),
    };
    let plans = match lo_up {
        true => plans(netns, &families, |address| pod.inbound.port(address)),
        false => vec![Plan::None(Canary::Unproven(LO_DOWN.to_owned()))],
    };
    Ok(Seen {
        addresses,
        all,
        lo_up,
        plans,
        unheard,
    })
}

fn unheard(netns: &Netns, pod: &Pod, addresses: impl Iterator<Item = IpAddr>) -> Vec<SocketAddr> {
    let rewritten = pod.rewritten.as_ref().map(|rewritten| rewritten.port);
    let ports = pod.probes.iter().map(|probe| probe.action.port());
    let ports: BTreeSet<u16> = ports.filter(|port| Some(*port) != rewritten).collect();
    let Ok(listeners) = Listeners::of(netns) else {
        return Vec::new();
    };
    let all = addresses.flat_map(|address| {
        ports
            .iter()
            .map(move |port| SocketAddr::new(address, *port))
    });
    all.filter(|at| matches!(listeners.has(*at), Ok(false)))
        .take(AT_ONCE)
        .collect()
}

/// The addresses at which a pod may be served: those of its interfaces, except the node's own, which a pod that may
/// configure its interfaces could add. Also returns whether this could be determined for all of them.
fn pod_addresses(netns: &Netns) -> io::Result<(Vec<IpAddr>, bool)> {
    let mut addresses = addresses::of_interfaces(netns, ADDRESSES)?;
    let routes = Routes::new()?;
    let mut all = true;
    addresses.retain(|address| match routes.is_local(*address) {
        Ok(is_local) => !is_local,
        Err(error) => {
            tracing::debug!(%address, %error, "cannot determine whether this is the node's own address: not served");
            all = false;
            false
        }
    });
    Ok((addresses, all))
}

/// The namespace's id as seen from the kubelet's namespace, and a subscription to its addresses.
pub(super) fn subscribe(netns: &Netns) -> io::Result<(i32, AddressWatch)> {
    let nsid = Nsids::new()?.assign(netns)?;
    Ok((nsid, AddressWatch::new(netns)?))
}
