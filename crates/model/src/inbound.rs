//! What of a pod's inbound connections its mesh takes, and at which port: there, and there alone, the mesh would
//! accept for a dead app.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::Mesh;

/// Ports of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ports {
    /// All but these.
    AllBut(Vec<RangeInclusive<u16>>),
    /// These alone.
    Only(Vec<RangeInclusive<u16>>),
}

/// How a mesh takes inbound connections of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inbound {
    /// The port for IPv4; none where the mesh takes nothing.
    pub v4: Option<u16>,
    /// The port for IPv6; likewise.
    pub v6: Option<u16>,
    /// The ports of the pod that are taken.
    pub taken: Ports,
}

impl Inbound {
    /// As `mesh` does it unless a pod says otherwise.
    pub fn by_default(mesh: Mesh) -> Self {
        Self {
            v4: mesh.inbound_port(),
            v6: mesh.inbound_port(),
            taken: Ports::AllBut(Vec::new()),
        }
    }

    /// The port at which the mesh listens for what is sent to `address`; none where it takes nothing.
    pub fn port(&self, address: IpAddr) -> Option<u16> {
        match address.to_canonical() {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }

    /// The port at which the mesh accepts what is sent to `endpoint`; none where it leaves that alone.
    pub fn accepts_at(&self, endpoint: SocketAddr) -> Option<u16> {
        let among = |ranges: &[RangeInclusive<u16>]| {
            ranges.iter().any(|one| one.contains(&endpoint.port()))
        };
        let taken = match &self.taken {
            Ports::AllBut(ports) => !among(ports),
            Ports::Only(ports) => among(ports),
        };
        self.port(endpoint.ip()).filter(|_| taken)
    }
}
