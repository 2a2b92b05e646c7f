//! A node whose kubelet is exempt: eBPF programs on its cgroup, endpoints, rules in pods.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kernel::exemption::{Exemption, Family, Matcher};
use kernel::netns::Netns;
use kernel::nsid::Nsids;
use kernel::programs::{AnswerIs, LoadOptions, Maps, Programs};
use probe_handler_common::counters::Counter;
use probe_handler_common::endpoint::{EndpointValue, KERNEL};
use reconcile::EndpointWriter;

use crate::cgroup::Cgroup;
use crate::kubelet::{Kubelet, Outcome, Probe, ProbeResult};
use crate::pod::Pod;
use crate::run::Run;
use crate::suite::env;
use crate::wait;

/// Fields drop in this order: the programs first, the run last.
pub(super) struct Node {
    pub _programs: Programs,
    pub maps: Maps,
    pub exemption: Exemption,
    /// The matcher of the rules in pods.
    pub matcher: Matcher,
    /// The kubelet.
    pub kubelet: Kubelet,
    /// Another process in its cgroup.
    pub sibling: Kubelet,
    /// A process outside the cgroup.
    pub bystander: Kubelet,
    pub _cgroup: Cgroup,
    pub run: Run,
}

impl Node {
    pub fn start() -> Result<Self> {
        let run = Run::new()?;
        let cgroup = Cgroup::new(&run, "kubelet")?;
        let kubelet = Kubelet::start(&run, &cgroup, "kubelet")?;
        let sibling = Kubelet::start(&run, &cgroup, "sibling")?;
        let bystander = Kubelet::bystander()?;
        let (mut programs, maps) = Programs::load(&LoadOptions::default())?;
        maps.config
            .update(|config| config.kubelet_pid = kubelet.pid())?;
        programs.attach(cgroup.path(), AnswerIs::LeftOut)?;
        let exemption = programs.exemption()?;
        Ok(Self {
            _programs: programs,
            maps,
            exemption,
            matcher: env::matcher(),
            kubelet,
            sibling,
            bystander,
            _cgroup: cgroup,
            run,
        })
    }

    /// Makes `ports` of a pod endpoints with `flags`, and installs our rules in the pod.
    pub fn exempt(&mut self, pod: &Pod, ports: &[u16], flags: u32) -> Result<()> {
        let netns = Netns::open(&pod.ns.path())?;
        self.exemption.put(&netns, &Family::ALL, self.matcher)?;
        self.endpoints(pod, ports, flags)
    }

    /// Makes `ports` of a pod endpoints, without rules.
    pub fn endpoints(&mut self, pod: &Pod, ports: &[u16], flags: u32) -> Result<()> {
        let netns_id = Nsids::new()?.assign(&Netns::open(&pod.ns.path())?)?;
        let value = EndpointValue {
            netns_id,
            flags,
            mesh_port: 0,
        };
        for ip in pod.ns.ips() {
            for port in ports {
                self.maps.endpoints.put(SocketAddr::new(ip, *port), value)?;
            }
        }
        Ok(())
    }

    /// Like [`Node::exempt`], with the kernel path only.
    pub fn exempt_by_kernel(&mut self, pod: &Pod, ports: &[u16]) -> Result<()> {
        self.exempt(pod, ports, KERNEL)
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.maps.counters.read()[counter as usize]
    }

    /// Probes as the kubelet; fails unless the probe passes, and reaches the app itself.
    pub fn passes(&self, pod: &Pod, probe: &Probe) -> Result<()> {
        let result = self.past_the_mesh(pod, probe)?;
        ensure!(result.passed(), "should pass: {result:?}");
        Ok(())
    }

    /// Like [`Node::passes`], with a probe that must fail.
    pub fn fails(&self, pod: &Pod, probe: &Probe) -> Result<()> {
        let result = self.past_the_mesh(pod, probe)?;
        ensure!(
            result.outcome == Outcome::Failure,
            "should fail: {result:?}"
        );
        Ok(())
    }

    /// The closed port is refused, as without a mesh.
    pub fn is_refused(&self, pod: &Pod, probe: &Probe) -> Result<()> {
        let result = self.past_the_mesh(pod, probe)?;
        ensure!(
            result.outcome == Outcome::Failure && result.message.contains("refused"),
            "should be refused: {result:?}"
        );
        Ok(())
    }

    fn past_the_mesh(&self, pod: &Pod, probe: &Probe) -> Result<ProbeResult> {
        let before = inbound(pod)?;
        let result = self.kubelet.probe(probe)?;
        ensure!(
            inbound(pod)? == before,
            "the sidecar got the kubelet's connection: {result:?}"
        );
        Ok(result)
    }

    /// Checks that `who` is subject to the mesh: plaintext is refused, a closed port looks open.
    pub fn is_captured(
        &self,
        who: &Kubelet,
        pod: &Pod,
        ip: IpAddr,
        (http, closed): (u16, u16),
    ) -> Result<()> {
        let before = inbound(pod)?;
        let got = who.probe(&Probe::http(ip, http, "/healthy"))?;
        ensure!(!got.passed(), "plaintext bypassed the mesh: {got:?}");
        let connections = u64::from(got.attempts) + 1;
        let got = who.probe(&Probe::tcp(ip, closed))?;
        ensure!(got.passed(), "the mesh does not capture it: {got:?}");
        // The last connection was closed at once, perhaps before the sidecar accepted it.
        seen_by_the_mesh(pod, before + connections)
    }

    /// Checks that ended connections have left no map entries.
    pub fn nothing_is_recorded(&self) -> Result<()> {
        let left = self.maps.connecting.connections();
        ensure!(left.is_empty(), "still exempt: {left:?}");
        Ok(())
    }
}

/// The number of connections that the pod's sidecar has accepted.
pub(super) fn inbound(pod: &Pod) -> Result<u64> {
    let sidecar = pod.sidecar.as_ref().context("a pod without a sidecar")?;
    Ok(sidecar.counts()?.inbound)
}

/// Waits until the pod's sidecar has accepted `connections`.
pub(super) fn seen_by_the_mesh(pod: &Pod, connections: u64) -> Result<()> {
    let what = format!("connection {connections} of the sidecar's");
    wait::until(&what, Duration::from_secs(2), || {
        (inbound(pod).ok()? >= connections).then_some(())
    })
}
