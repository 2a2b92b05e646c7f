//! The environment of this group: a node, its API server, its kubelet, and the daemon.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bpf::Map;
use crate::cgroup::Cgroup;
use crate::daemon::{Daemon, DaemonSpec};
use crate::kubelet::{Kubelet, Probe, ProbeResult};
use crate::node::{Node, NodePod};
use crate::pod::PodSpec;
use crate::run::Run;
use crate::suite::cases::Cases;
use crate::suite::env::has_kernel_path;
use crate::suite::sample_pod::{self, HTTP};
use crate::wait;

/// How long an expected change may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(5);
/// How long to wait for a change that must not happen.
pub const QUIET: Duration = Duration::from_millis(300);

/// The environment. Fields drop in this order.
#[derive(Debug)]
pub struct Env {
    /// The daemon.
    pub daemon: Daemon,
    /// The kubelet.
    pub kubelet: Arc<Kubelet>,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// The node and its API server.
    pub node: Arc<Node>,
    /// The run, with names and files.
    pub run: Arc<Run>,
}

impl Env {
    /// Starts all parts.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start(cases: &mut Cases) -> Result<Self> {
        let run = Arc::new(Run::new()?);
        let node = Node::start(&run, "node")?;
        Self::on(cases, run, node, &[])
    }

    /// Starts the daemon with these arguments, and a kubelet, on an existing node.
    ///
    /// # Errors
    /// When something does not start.
    pub fn on(cases: &mut Cases, run: Arc<Run>, node: Arc<Node>, args: &[&str]) -> Result<Self> {
        let cgroup = Cgroup::new(&run, "kubelet")?;
        let kubelet = Arc::new(Kubelet::start(&run, &cgroup, "kubelet")?);
        let spec = DaemonSpec::new("daemon")
            .program(cases.daemon())
            .kubelet_cgroup(&cgroup);
        let spec = args.iter().fold(spec, |spec, arg| spec.arg(arg));
        let daemon = node.serve(spec).start(&run)?;
        cases.show_on_failure(daemon.log_path());
        Ok(Self {
            daemon,
            kubelet,
            cgroup,
            node,
            run,
        })
    }

    /// Creates a pod and waits until it is served.
    ///
    /// # Errors
    /// When it cannot be made, or is not served in time.
    pub fn pod(&self, spec: PodSpec) -> Result<NodePod> {
        let mut pod = self.node.bind(spec)?;
        pod.run()?;
        self.served(&pod)?;
        Ok(pod)
    }

    /// The kernel's map of endpoints.
    ///
    /// # Errors
    /// When the daemon has ended.
    pub fn endpoints(&self) -> Result<Map> {
        Map::held_by(self.daemon.pid(), "ENDPOINTS")
    }

    /// Waits until the endpoint of the sample pod's HTTP probe is in the kernel's map, or no longer is.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn endpoint(&self, pod: &NodePod, stands: bool) -> Result<Duration> {
        let begun = Instant::now();
        let address = SocketAddr::new(pod.ns()?.ipv4().into(), HTTP);
        self.stands(address, stands)
            .with_context(|| format!("pod {}: {}", pod.name(), self.said(pod.name())))?;
        Ok(begun.elapsed())
    }

    /// Waits until an endpoint is in the kernel's map, or no longer is.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn stands(&self, address: SocketAddr, stands: bool) -> Result<()> {
        let map = self.endpoints()?;
        let what = format!(
            "endpoint {address} to {}",
            if stands { "stand" } else { "go" }
        );
        wait::until(&what, SOON, || {
            (map.has(address).ok()? == stands).then_some(())
        })
    }

    /// Waits until a pod is served and its canary has passed.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn served(&self, pod: &NodePod) -> Result<()> {
        self.daemon.wait_served_by_name(pod.name())
    }

    /// Waits until the daemon has no pod with this name.
    ///
    /// # Errors
    /// When it still has.
    pub fn gone(&self, name: &str) -> Result<()> {
        wait::until(&format!("pod {name} to be forgotten"), SOON, || {
            self.daemon.pod_status(name).ok()?.is_none().then_some(())
        })
    }

    /// The daemon's status of a pod, for messages.
    pub fn said(&self, name: &str) -> String {
        match self.daemon.pod_status(name) {
            Ok(Some(status)) => status.to_string(),
            Ok(None) => "the daemon does not know it".to_owned(),
            Err(error) => format!("{error:#}"),
        }
    }

    /// Checks that all probes of a sample pod have the correct result, over both families.
    ///
    /// # Errors
    /// When one does not.
    pub fn check_verdicts(&self, pod: &NodePod) -> Result<()> {
        for ip in pod.ns()?.ips() {
            sample_pod::check_verdicts(&self.kubelet, ip)
                .with_context(|| format!("pod {}", pod.name()))?;
        }
        Ok(())
    }

    /// Checks that the mesh handles all probes of a sample pod.
    ///
    /// # Errors
    /// When one does not.
    pub fn check_mesh_only(&self, pod: &NodePod) -> Result<()> {
        sample_pod::check_mesh_only(&self.kubelet, pod.ns()?.ipv4().into())
            .with_context(|| format!("pod {}: {}", pod.name(), self.said(pod.name())))
    }

    /// Checks what the kubelet sees of a pod that a daemon has served, while no daemon serves it: the results of the kernel path
    /// if daemons have it, else the mesh's.
    ///
    /// # Errors
    /// When it sees something else.
    pub fn check_without_daemon(&self, pod: &NodePod) -> Result<()> {
        match has_kernel_path() {
            true => self.check_verdicts(pod),
            false => self.check_mesh_only(pod),
        }
    }

    /// Waits until a probe passes, or no longer passes.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn until(&self, what: &str, probe: &Probe, passes: bool) -> Result<ProbeResult> {
        wait::until(what, SOON, || {
            let result = self.kubelet.probe(probe).ok()?;
            (result.passed() == passes).then_some(result)
        })
    }

    /// Waits until `status` reports a problem that contains all of these words.
    ///
    /// # Errors
    /// When it does not, or the log does not contain it exactly once.
    pub fn problem(&self, words: &[&str]) -> Result<String> {
        let mut last = Vec::new();
        let found = wait::until(&format!("a problem with {words:?}"), SOON, || {
            last = self.problems().ok()?;
            let all = |text: &&String| words.iter().all(|word| text.contains(word));
            last.iter().find(all).cloned()
        });
        let found = found.with_context(|| format!("{last:#?}"))?;
        let log = self.daemon.wait_logged(&[&found])?;
        let said = log.matches(found.as_str()).count();
        ensure!(said == 1, "the log says it {said} times: {found}");
        Ok(found)
    }

    /// Waits until `status` reports no problem.
    ///
    /// # Errors
    /// When a problem remains.
    pub fn no_problem(&self) -> Result<()> {
        let mut last = Vec::new();
        let gone = wait::until("no problem to be left", SOON, || {
            last = self.problems().ok()?;
            last.is_empty().then_some(())
        });
        gone.with_context(|| format!("{last:#?}"))
    }

    fn problems(&self) -> Result<Vec<String>> {
        let problems = self.daemon.status()?["source"]["problems"].take();
        Ok(serde_json::from_value(problems)?)
    }
}
