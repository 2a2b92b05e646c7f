//! The environment of most groups: a run, a kubelet in its cgroup, a daemon that serves it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use kernel::exemption::Matcher;
use serde_json::Value;

use super::cases::Cases;
use crate::cgroup::Cgroup;
use crate::daemon::{Daemon, DaemonSpec};
use crate::kubelet::{Kubelet, Outcome, Probe, ProbeResult};
use crate::pod::{Pod, PodSpec};
use crate::run::Run;

/// Arguments of a daemon whose endpoints all take the handler's path, for cases about that path alone. All other cases must
/// pass with and without the kernel path: `PROBE_HANDLER_KERNEL_PATH` sets the default, and `cargo xtask test` uses both.
pub const HANDLER_PATH: &str = "--kernel-path=false";
/// Deadline for the end of a daemon.
pub const GRACE: Duration = Duration::from_secs(10);

/// Whether daemons use the kernel path unless their arguments disable it.
pub fn has_kernel_path() -> bool {
    std::env::var("PROBE_HANDLER_KERNEL_PATH").map_or(true, |value| value != "false")
}

/// The matcher of exempt connections if a case does not set it: tc with `PROBE_HANDLER_KERNEL_PATH_TC=true`, which also applies
/// to daemons.
pub fn matcher() -> Matcher {
    match std::env::var("PROBE_HANDLER_KERNEL_PATH_TC").as_deref() {
        Ok("true") => Matcher::Tc,
        _ => Matcher::XtBpf,
    }
}

/// Whether the kernel path serves a pod according to its status, with any matcher.
pub fn is_by_kernel(status: &Value) -> bool {
    matches!(status["path"].as_str(), Some("kernel" | "kernel_tc"))
}

/// A node with a kubelet and a daemon. Fields drop in this order: the daemon first, the run last.
#[derive(Debug)]
pub struct Env {
    /// The daemon.
    pub daemon: Daemon,
    /// A process outside the kubelet's cgroup.
    pub bystander: Kubelet,
    /// The kubelet.
    pub kubelet: Arc<Kubelet>,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// The run, with names, addresses and files.
    pub run: Run,
}

impl Env {
    /// Starts all parts; the daemon gets `args` in addition to its default arguments.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start(cases: &mut Cases, args: &[&str]) -> Result<Self> {
        let run = Run::new()?;
        let cgroup = Cgroup::new(&run, "kubelet")?;
        let kubelet = Arc::new(Kubelet::start(&run, &cgroup, "kubelet")?);
        let bystander = Kubelet::bystander()?;
        let mut spec = DaemonSpec::new("daemon")
            .program(cases.daemon())
            .kubelet_cgroup(&cgroup);
        for arg in args {
            spec = spec.arg(arg);
        }
        let daemon = spec.start(&run)?;
        cases.show_on_failure(daemon.log_path());
        Ok(Self {
            daemon,
            bystander,
            kubelet,
            cgroup,
            run,
        })
    }

    /// Creates a pod and waits until the daemon serves it.
    ///
    /// # Errors
    /// When it cannot be created, or is not served in time.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let mut pod = spec.start(&self.run)?;
        self.daemon.serve(&mut pod)?;
        Ok(pod)
    }

    /// Probes as the kubelet; fails unless the probe passes.
    ///
    /// # Errors
    /// When it does not pass.
    pub fn passes(&self, probe: &Probe) -> Result<ProbeResult> {
        let result = self.kubelet.probe(probe)?;
        ensure!(
            result.passed(),
            "the kubelet's probe should pass: {result:?}"
        );
        Ok(result)
    }

    /// Probes as the kubelet; fails unless the probe fails.
    ///
    /// # Errors
    /// When it passes.
    pub fn fails(&self, probe: &Probe) -> Result<ProbeResult> {
        let result = self.kubelet.probe(probe)?;
        ensure!(
            result.outcome == Outcome::Failure,
            "the kubelet's probe should fail: {result:?}"
        );
        Ok(result)
    }

    /// Ends the daemon as Kubernetes does; fails unless it exits with success.
    ///
    /// # Errors
    /// When it does not end in time, or ends with an error.
    pub fn stop_daemon(&mut self) -> Result<()> {
        let status = self.daemon.stop(GRACE)?;
        ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }
}
