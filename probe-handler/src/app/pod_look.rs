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
use kernel::exemption::Family;
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

/// A pod's addresses by family: those in its status, of which it is served at no others, or all of a family of which the status
/// names none. These may be ones that the node does not reach, such as those of a bridge in the pod.
pub(super) struct ByFamily(Vec<IpAddr>);

impl ByFamily {
    /// Of the addresses in its namespace, and those in its status, which may be old or not known yet.
    pub(super) fn new(addresses: &[IpAddr], status: &[IpAddr]) -> Self {
        let is_named = |address: &&IpAddr| status.contains(address);
        let named = |is_ipv4: bool| {
            let of_family = |address: &&IpAddr| address.is_ipv4() == is_ipv4;
            addresses
                .iter()
                .filter(of_family)
                .any(|address| is_named(&address))
        };
        let (v4, v6) = (named(true), named(false));
        let kept = addresses.iter().filter(|address| {
            let any_named = if address.is_ipv4() { v4 } else { v6 };
            !any_named || is_named(address)
        });
        Self(kept.copied().collect())
    }

    /// The families of which it has addresses.
    pub(super) fn families(&self) -> impl Iterator<Item = Family> {
        let has = |family: &Family| self.of(*family).next().is_some();
        Family::ALL.into_iter().filter(has)
    }

    /// The addresses of a family.
    pub(super) fn of(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        let of = move |address: &IpAddr| address.is_ipv4() == (family == Family::V4);
        self.0.iter().copied().filter(of)
    }
}

/// Reads the state of a pod's network namespace. This takes long if the namespace contains much.
pub(super) fn look(netns: &Netns, pod: &Pod) -> io::Result<Seen> {
    let (addresses, all) = pod_addresses(netns)?;
    let lo_up = loopback::is_up(netns)?;
    let by_family = ByFamily::new(&addresses, &pod.ips);
    let families = by_family.families();
    let mut families: Vec<IpAddr> = families
        .filter_map(|family| by_family.of(family).next())
        .collect();
    let unheard = unheard(netns, pod, families.iter().copied());
    if pod.localhost {
        families = families.into_iter().map(localhost_of).collect();
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_the_status_are_the_only_ones_of_their_family() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("address");
        let in_namespace = [ip("10.0.0.1"), ip("10.0.0.2"), ip("fd00::1"), ip("fd00::2")];
        let by_family = ByFamily::new(&in_namespace, &[ip("10.0.0.2"), ip("192.0.2.1")]);
        let of = |family| by_family.of(family).collect::<Vec<_>>();
        assert_eq!(of(Family::V4), [ip("10.0.0.2")]);
        assert_eq!(of(Family::V6), [ip("fd00::1"), ip("fd00::2")]);
        let one = ByFamily::new(&in_namespace[2..], &[]);
        assert_eq!(one.families().collect::<Vec<_>>(), [Family::V6]);
    }
}
