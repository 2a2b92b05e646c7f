//! Which of a pod's inbound connections its mesh redirects, and to which port: only for these would the mesh
//! accept a connection while the app does not listen.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::Mesh;

/// A set of a pod's ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ports {
    /// All ports except these.
    AllBut(Vec<RangeInclusive<u16>>),
    /// Only these ports.
    Only(Vec<RangeInclusive<u16>>),
}

/// How a mesh redirects the inbound connections of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inbound {
    /// The mesh's port for IPv4; `None` if the mesh redirects no IPv4 connections.
    pub v4: Option<u16>,
    /// The mesh's port for IPv6; `None` if the mesh redirects no IPv6 connections.
    pub v6: Option<u16>,
    /// The pod's ports whose connections are redirected.
    pub taken: Ports,
}

impl Inbound {
    /// The defaults of `mesh`, which a pod may override.
    pub fn by_default(mesh: Mesh) -> Self {
        Self {
            v4: mesh.inbound_port(),
            v6: mesh.inbound_port(),
            taken: Ports::AllBut(Vec::new()),
        }
    }

    /// The port on which the mesh listens for redirected connections to `address`; `None` if it redirects none.
    pub fn port(&self, address: IpAddr) -> Option<u16> {
        match address.to_canonical() {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }

    /// The port on which the mesh accepts connections to `endpoint`; `None` if it does not redirect them.
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
