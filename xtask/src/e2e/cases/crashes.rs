//! The daemon crashes until the kubelet waits before it restarts it (CrashLoopBackOff).

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{START, SYSTEM, Suite};
use crate::e2e::kubectl::until;
use crate::e2e::manifests::{NAMESPACE, signal_pod};
use crate::e2e::table;

/// How often the daemon is killed. The kubelet restarts a container at once, then after 10 s, 20 s, 40 s and 80 s.
const CRASHES: u32 = 5;
/// Longer than the total wait of the kubelet, on a busy node.
const RECOVERY: Duration = Duration::from_secs(300);

impl Suite<'_> {
    /// Kills the daemon again and again while every pod is probed each second. Probes on the kernel path are not affected, and a
    /// probe that fails while no daemon runs still restarts its container.
    pub fn crashes(&mut self) -> Result<()> {
        if !self.has_kernel_path("http")? {
            println!("  the handler serves pod http: while-the-daemon-crashes/* does not apply");
            return Ok(());
        }
        let stalls = table::stalls();
        self.create([&stalls])?;
        self.pod_turns(&stalls.name, true, START)?;
        let settled = self.pods()?;
        let uid = self.daemon_uid()?;
        let crasher = signal_pod("crasher", &uid, "agent", "SIGKILL", CRASHES, self.place);
        self.kubectl.create(&[crasher])?;
        self.ends("crasher")?;
        // The daemon is dead now, and for the next 80 s.
        let stopper = signal_pod(
            "stopper",
            &settled[&stalls.name].uid,
            "app",
            "SIGSTOP",
            1,
            self.place,
        );
        self.kubectl.create(&[stopper])?;
        self.ends("stopper")?;
        let restarted = until(START, || {
            let seen = self.pods()?.remove(&stalls.name).unwrap_or_default();
            Ok(match seen.restarts {
                0 => Err("it was not restarted".to_owned()),
                _ => Ok(()),
            })
        });
        let waits = self.daemon_waits();
        self.report.add(
            "while-the-daemon-crashes/a-stalled-app-is-restarted",
            restarted.and(waits),
        );
        let pods = table::on_the_kernel_path();
        self.stayed_as_they_were("while-the-daemon-crashes", &pods, &settled)?;
        self.stay_unready("while-the-daemon-crashes")?;
        let back = until(RECOVERY, || {
            let daemons = self
                .kubectl
                .get(&["daemonset", "probe-handler", "-n", SYSTEM])?;
            let status = &daemons["status"];
            Ok(
                match status["numberReady"] == status["desiredNumberScheduled"] {
                    true => Ok(()),
                    false => Err("the daemon is not ready".to_owned()),
                },
            )
        });
        self.report.add("after-the-crashes/ready", back);
        self.stayed_as_they_were("after-the-crashes", &pods, &settled)
    }

    fn daemon_uid(&self) -> Result<String> {
        let node = format!("spec.nodeName={}", self.place.node);
        let list = self
            .kubectl
            .get(&["pods", "-n", SYSTEM, "--field-selector", &node])?;
        let uid = list["items"][0]["metadata"]["uid"].as_str();
        uid.map(str::to_owned).context("no daemon runs on the node")
    }

    /// Checks that the daemon is dead: otherwise it would have served the probe.
    fn daemon_waits(&self) -> Result<()> {
        let node = format!("spec.nodeName={}", self.place.node);
        let list = self
            .kubectl
            .get(&["pods", "-n", SYSTEM, "--field-selector", &node])?;
        let state = &list["items"][0]["status"]["containerStatuses"][0]["state"];
        let reason = &state["waiting"]["reason"];
        ensure!(
            reason == "CrashLoopBackOff",
            "the daemon's state is {state}, not CrashLoopBackOff"
        );
        Ok(())
    }

    /// Waits until the pod has ended with success.
    fn ends(&self, name: &str) -> Result<()> {
        let code = until(RECOVERY, || {
            let seen = self.pods()?.remove(name).unwrap_or_default();
            Ok(seen
                .exit_code
                .ok_or_else(|| format!("{name} has not ended")))
        })?;
        let said = self.kubectl.run(&["logs", "-n", NAMESPACE, name], "")?;
        ensure!(code == 0, "{name} ended with exit code {code}: {said}");
        Ok(())
    }
}
