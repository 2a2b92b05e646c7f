//! Sidecars: child processes in a pod's namespace that handle inbound connections as a mesh in STRICT mode
//! does. Only mutual TLS is forwarded, to the original destination.

mod inbound;
mod pilot_agent;
pub mod process;
mod refusal;

pub use refusal::Refusal;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cgroup;
use crate::mesh::Identity;
use crate::netns::NetNs;
use crate::rules::RuleSet;
use crate::worker::{Worker, testbed_program};

const ANSWER: Duration = Duration::from_secs(5);

/// Connection counts of a sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Inbound connections accepted.
    pub inbound: u64,
    /// Inbound connections that had mutual TLS and were forwarded to the app.
    pub forwarded: u64,
    /// Inbound connections that were refused because they had no TLS or no certificate of the mesh.
    pub refused: u64,
    /// Connections that the rules redirected to the outbound port.
    pub outbound: u64,
    /// Connections that the rules redirected to the DNS port.
    pub dns: u64,
    /// Requests to pilot-agent's status port.
    pub pilot_agent: u64,
}

/// How the mesh treats a pod's inbound traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Forwards plaintext to the app, too (PERMISSIVE).
    pub permissive: bool,
    /// Connects to the app at localhost (`inboundTrafficPolicy` LOCALHOST).
    pub localhost: bool,
    /// Listens on IPv4 only.
    pub ipv4_only: bool,
}

impl Traffic {
    /// The address at which the sidecar connects to the app of a pod at `pod`.
    fn app(self, pod: IpAddr) -> IpAddr {
        match (self.localhost, pod) {
            (false, _) => pod,
            (true, IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
            (true, IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
        }
    }
}

/// A running sidecar, killed on drop.
#[derive(Debug)]
pub struct Sidecar {
    worker: Worker,
}

impl Sidecar {
    /// Starts the proxy of a mesh in a namespace and waits until it listens. `probers` is Istio's
    /// `ISTIO_KUBE_APP_PROBERS`, with which pilot-agent answers on 15020. `first_uid` is the node's id of the pod's root. The process starts in `cgroups`, if
    /// any are given.
    ///
    /// # Errors
    /// When the rule set has no proxy, or a port cannot be bound.
    pub fn start(
        ns: &NetNs,
        rules: RuleSet,
        identity: &Identity,
        traffic: Traffic,
        first_uid: u32,
        probers: &BTreeMap<String, Value>,
        cgroups: &[PathBuf],
    ) -> Result<Self> {
        let mut spec = process::Spec::of(rules, ns.ipv4().into(), probers.clone())?;
        spec.uid += first_uid;
        spec.gid += first_uid;
        spec.traffic = traffic;
        let mut command = Command::new(testbed_program()?);
        command
            .arg("sidecar")
            .arg("--netns")
            .arg(ns.path())
            .arg("--identity")
            .arg(identity.dir())
            .arg("--spec")
            .arg(serde_json::to_string(&spec)?)
            .args(cgroup::arguments(cgroups));
        let worker = Worker::start(&format!("sidecar in {}", ns.name()), &mut command)?;
        Ok(Self { worker })
    }

    /// Its counts so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn counts(&self) -> Result<Counts> {
        self.worker.ask(&(), ANSWER)
    }

    /// Kills it.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.worker.kill().map(drop)
    }
}
