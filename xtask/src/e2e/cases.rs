//! The checks in a cluster, in test order: without the daemon, after its installation, during an upgrade, and
//! after its removal.

mod crashes;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::kubectl::{Kubectl, pass, until};
use super::manifests::{NAMESPACE, Place, Pod, Sidecar, host_network_pod};
use super::pod_status::{self, PodStatus};
use super::report::Report;
use super::table::{self, Failing, Kind};
use crate::shell::root;

/// How long a pod may take to start: images are already on the node, but the node may be busy.
const START: Duration = Duration::from_secs(120);
/// Every verdict must be right this long after the daemon is ready: the daemon serves pods in less than
/// a second, and the kubelet needs one probe and one status update.
const TURN: Duration = Duration::from_secs(20);
/// How long nothing may change: two dozen probes of each kind.
const QUIET: Duration = Duration::from_secs(25);

/// The cluster under test.
pub struct Suite<'a> {
    /// The cluster.
    pub kubectl: &'a Kubectl,
    /// Node and image of its pods.
    pub place: &'a Place,
    /// Directory of the daemon's manifests, for `kubectl -k`.
    pub overlay: &'a str,
    /// The result of each check.
    pub report: &'a mut Report,
}

impl Suite<'_> {
    /// In STRICT mode the kubelet's connection is refused, and a closed port looks open.
    pub fn without_daemon(&mut self) -> Result<()> {
        let pods = table::before();
        self.create(pods.iter().map(|(pod, ..)| pod))?;
        for (pod, at_the_mesh, _) in &pods {
            let name = format!("without-the-daemon/{}", pod.name);
            let run = self.running(&pod.name).and_then(|_| {
                self.pod_turns(&pod.name, *at_the_mesh, START)?;
                match at_the_mesh {
                    true => Ok(()),
                    false => self.event(&pod.name, "Readiness probe failed:"),
                }
            });
            self.report.add(&name, run);
        }
        Ok(())
    }

    /// Installs the daemon from its manifests and checks that it becomes ready.
    pub fn install_daemon(&mut self) -> Result<()> {
        let before = self.pods()?;
        self.kubectl.run(&["apply", "-k", self.overlay], "")?;
        self.rolled_out(DAEMON)?;
        for (pod, _, in_truth) in table::before() {
            let name = format!("with-the-daemon/{}", pod.name);
            let run = self.pod_turns(&pod.name, in_truth, TURN).and_then(|now| {
                let was = before
                    .get(&pod.name)
                    .context("the pod did not exist before")?;
                ensure!(now.uid == was.uid, "the pod was replaced");
                let restarts = now.restarts.saturating_sub(was.restarts);
                ensure!(restarts == 0, "it was restarted {restarts} times");
                Ok(())
            });
            self.report.add(&name, run);
        }
        Ok(())
    }

    /// Checks pods that start while the daemon runs.
    pub fn verdicts(&mut self) -> Result<()> {
        let (healthy, failing) = (table::healthy(), table::failing());
        self.create(&healthy)?;
        self.create(failing.iter().map(|failing| &failing.pod))?;
        for pod in &healthy {
            let run = self.pod_turns(&pod.name, true, START).and_then(|now| {
                let events = self.events(&pod.name)?;
                ensure!(now.restarts == 0, "it was restarted; events: {events:#?}");
                Ok(())
            });
            self.report.add(&format!("becomes-ready/{}", pod.name), run);
        }
        for failing in &failing {
            let run = self.fails(failing);
            self.report.add(&format!("fails/{}", failing.pod.name), run);
        }
        let discarded = table::body_breaks().name;
        let run = self.event(&discarded, "Liveness probe errored");
        self.report.add(&format!("discarded/{discarded}"), run);
        let settled = self.pods()?;
        pass(QUIET);
        self.stayed_as_they_were("stays-ready", &healthy, &settled)?;
        self.stay_unready("stays-unready")
    }

    /// Checks the preStop hook of a deleted pod. The kubelet sends events only for hooks that fail.
    pub fn last_hook(&mut self) -> Result<()> {
        let name = table::hooked().name;
        let uid = self.pods()?.remove(&name).unwrap_or_default().uid;
        let gone = ["delete", "pod", &name, "-n", NAMESPACE, "--wait=true"];
        self.kubectl.run(&gone, "")?;
        // The kubelet sends events later, in order.
        let run = until(START, || {
            let events = pod_status::events(self.kubectl, NAMESPACE, &uid)?;
            let killed = events.iter().any(|event| event.starts_with("Killing:"));
            let failed = events.iter().any(|event| event.contains("Hook"));
            ensure!(!failed, "events: {events:#?}");
            Ok(match killed {
                true => Ok(()),
                false => Err(format!("it was not killed, events: {events:#?}")),
            })
        });
        self.report.add("pre-stop/hooks", run);
        Ok(())
    }

    /// Only the kubelet is exempt: every other process on the node is subject to the mesh.
    pub fn other_processes(&mut self) -> Result<()> {
        let ip = self
            .pods()?
            .remove("http")
            .map(|pod| pod.ip)
            .unwrap_or_default();
        let url = format!("http://{ip}:8080/healthy");
        let free = Pod {
            sidecar: Sidecar::None,
            ..table::one_of_many("no-mesh", Sidecar::None)
        };
        self.create([&free])?;
        let free = self.running("no-mesh")?;
        let control = format!("http://{}:8080/healthy", free.ip);
        self.kubectl.create(&[
            host_network_pod("other-process", &["probe", &url], self.place),
            host_network_pod("other-process-control", &["probe", &control], self.place),
        ])?;
        let refused = self.exit_code("other-process").and_then(|code| {
            ensure!(
                code != 0,
                "a process that is not the kubelet reached the app"
            );
            let said = self
                .kubectl
                .run(&["logs", "-n", NAMESPACE, "other-process"], "")?;
            ensure!(
                said.contains("reset"),
                "the connection was not reset: {said}"
            );
            Ok(())
        });
        self.report
            .add("another-process/is-refused-by-the-mesh", refused);
        let answered = self.exit_code("other-process-control").and_then(|code| {
            ensure!(
                code == 0,
                "a pod without a mesh did not answer: exit code {code}"
            );
            Ok(())
        });
        self.report
            .add("another-process/reaches-a-pod-of-no-mesh", answered);
        Ok(())
    }

    /// Restarts the DaemonSet's pods while every pod is probed each second.
    pub fn upgrade(&mut self) -> Result<()> {
        let healthy = table::healthy();
        let settled = self.pods()?;
        let set = ["rollout", "restart", "-n", SYSTEM, DAEMON];
        self.kubectl.run(&set, "")?;
        self.rolled_out(DAEMON)?;
        // The old daemon drains while the new one already runs.
        self.one_daemon_per_node()?;
        self.stayed_as_they_were("through-an-upgrade", &healthy, &settled)?;
        for failing in table::failing() {
            let run = self.pods().and_then(|pods| {
                let now = pods.get(&failing.pod.name).context("the pod is gone")?;
                ensure!(
                    failing.kind == Kind::Liveness || !now.ready,
                    "it became ready"
                );
                Ok(())
            });
            let name = format!("through-an-upgrade/{}", failing.pod.name);
            self.report.add(&name, run);
        }
        Ok(())
    }

    /// Starts many pods at once, each of which restarts at its first wrong verdict, and compares with as many
    /// pods without a mesh.
    pub fn many_pods(&mut self, size: usize) -> Result<()> {
        let names = |kind: &str| -> Vec<String> {
            (0..size)
                .map(|index| format!("crowd-{kind}-{index}"))
                .collect()
        };
        let mut restarts = BTreeMap::new();
        for (kind, sidecar) in [("free", Sidecar::None), ("meshed", Sidecar::Native)] {
            let pods: Vec<_> = names(kind)
                .iter()
                .map(|name| table::one_of_many(name, sidecar))
                .collect();
            self.create(&pods)?;
            for pod in &pods {
                let run = self.running(&pod.name).map(drop);
                run.with_context(|| pod.name.clone())?;
            }
            pass(QUIET);
            let seen = self.pods()?;
            let total: u64 = pods
                .iter()
                .filter_map(|pod| seen.get(&pod.name))
                .map(|seen| seen.restarts)
                .sum();
            println!("  {size} pods at once, {kind}: {total} restarts");
            restarts.insert(kind, total);
            let mut gone = vec!["delete", "pod", "-n", NAMESPACE, "--wait=true"];
            gone.extend(pods.iter().map(|pod| pod.name.as_str()));
            self.kubectl.run(&gone, "")?;
        }
        let run = if restarts["meshed"] > restarts["free"] {
            Err(anyhow::anyhow!("{restarts:?} restarts"))
        } else {
            Ok(())
        };
        self.report
            .add("crowd/no-restart-more-than-without-a-mesh", run);
        Ok(())
    }

    /// Removes the DaemonSet, but not what the kernel path leaves on the node, and checks that nothing changes for the probes
    /// that take it. Skipped if the handler serves them.
    pub fn without_any_daemon(&mut self) -> Result<()> {
        if !self.has_kernel_path("http")? {
            println!("  the handler serves pod http: while-no-daemon-runs/* does not apply");
            return Ok(());
        }
        let settled = self.pods()?;
        let set = ["delete", "daemonset", "probe-handler", "-n", SYSTEM];
        self.kubectl
            .run(&[&set[..], &["--wait=true"]].concat(), "")?;
        until(START, || {
            let left = pod_status::pods(self.kubectl, SYSTEM)?.len();
            Ok(match left {
                0 => Ok(()),
                _ => Err(format!("{left} daemons still run")),
            })
        })?;
        pass(QUIET);
        let mut pods = table::healthy();
        // Its hook was tested before.
        pods.retain(|pod| pod.name != table::hooked().name);
        self.stayed_as_they_were("while-no-daemon-runs", &pods, &settled)
    }

    /// Whether the kernel path serves the pod.
    fn has_kernel_path(&self, pod: &str) -> Result<bool> {
        let node = format!("spec.nodeName={}", self.place.node);
        let list = ["get", "pods", "-n", SYSTEM, "--field-selector", &node];
        let daemon = self
            .kubectl
            .run(&[&list[..], &["-o", "name"]].concat(), "")?;
        let daemon = daemon
            .lines()
            .next()
            .context("no daemon runs on the node")?;
        let status = [
            "exec",
            "-n",
            SYSTEM,
            daemon,
            "--",
            "/probe-handler",
            "status",
        ];
        let status = self
            .kubectl
            .run(&[&status[..], &["-o", "json"]].concat(), "")?;
        let status: serde_json::Value = serde_json::from_str(&status).context("status")?;
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let found = pods
            .iter()
            .find(|one| one["namespace"] == NAMESPACE && one["name"] == pod);
        let found = found.with_context(|| format!("status does not show pod {pod}"))?;
        Ok(found["path"] == "kernel")
    }

    /// Uninstalls as docs/install.md describes, and checks that probes are subject to the mesh again: nothing is left.
    pub fn remove_daemon(&mut self) -> Result<()> {
        let set = ["delete", "daemonset", "probe-handler", "-n", SYSTEM];
        let absent = ["--ignore-not-found", "--wait=true"];
        self.kubectl.run(&[&set[..], &absent].concat(), "")?;
        // A daemon that still drains maintains what cleanup removes.
        let label = "app.kubernetes.io/name=probe-handler";
        let gone = ["wait", "--for=delete", "pod", "-l", label, "-n", SYSTEM];
        let patience = ["--timeout=5m"];
        self.kubectl.run(&[&gone[..], &patience].concat(), "")?;
        let cleanup = root().join("deploy/cleanup").display().to_string();
        self.kubectl.run(&["apply", "-k", &cleanup], "")?;
        self.rolled_out("daemonset/probe-handler-cleanup")?;
        let rest = ["delete", "-k", self.overlay];
        self.kubectl.run(&[&rest[..], &absent].concat(), "")?;
        for (pod, at_the_mesh, _) in table::before() {
            let run = self.pod_turns(&pod.name, at_the_mesh, TURN).map(drop);
            self.report
                .add(&format!("after-the-daemon/{}", pod.name), run);
        }
        Ok(())
    }

    fn create<'p>(&self, pods: impl IntoIterator<Item = &'p Pod>) -> Result<()> {
        let manifests: Vec<_> = pods
            .into_iter()
            .map(|pod| pod.manifest(self.place))
            .collect();
        self.kubectl.create(&manifests)
    }

    fn pods(&self) -> Result<BTreeMap<String, PodStatus>> {
        pod_status::pods(self.kubectl, NAMESPACE)
    }

    /// Waits until the kubelet has started the pod's app.
    fn running(&self, name: &str) -> Result<PodStatus> {
        until(START, || {
            let seen = self.pods()?.remove(name).unwrap_or_default();
            Ok(match seen.phase == "Running" {
                true => Ok(seen),
                false => Err(format!("{name} is {:?}, not Running", seen.phase)),
            })
        })
    }

    fn pod_turns(&self, name: &str, ready: bool, deadline: Duration) -> Result<PodStatus> {
        let turned = until(deadline, || {
            let seen = self.pods()?.remove(name).unwrap_or_default();
            Ok(match seen.ready == ready && seen.phase == "Running" {
                true => Ok(seen),
                false => Err(format!("ready is {}, phase {}", seen.ready, seen.phase)),
            })
        });
        turned.with_context(|| format!("events: {:#?}", self.events(name)))
    }

    fn fails(&self, failing: &Failing) -> Result<()> {
        let name = &failing.pod.name;
        self.event(name, &format!("{} probe failed:", failing.kind.word()))?;
        self.event(name, failing.says)?;
        if failing.kind == Kind::Readiness {
            return Ok(());
        }
        self.event(
            name,
            &format!("failed {} probe, will be restarted", word(failing.kind)),
        )?;
        until(START, || {
            let seen = self.pods()?.remove(name).unwrap_or_default();
            Ok(match seen.restarts {
                0 => Err("it was not restarted".to_owned()),
                _ => Ok(()),
            })
        })
    }

    /// Waits for an event of the pod that contains `text`.
    fn event(&self, name: &str, text: &str) -> Result<()> {
        until(START, || {
            let events = self.events(name)?;
            Ok(match events.iter().any(|event| event.contains(text)) {
                true => Ok(()),
                false => Err(format!("no event says {text:?}, but {events:#?}")),
            })
        })
    }

    fn events(&self, name: &str) -> Result<Vec<String>> {
        let uid = self.pods()?.remove(name).unwrap_or_default().uid;
        pod_status::events(self.kubectl, NAMESPACE, &uid)
    }

    /// Checks that pods have been ready since `settled`: same pods, no restart, condition Ready unchanged. A
    /// single failed probe would change one of these.
    fn stayed_as_they_were(
        &mut self,
        what: &str,
        pods: &[Pod],
        settled: &BTreeMap<String, PodStatus>,
    ) -> Result<()> {
        let now = self.pods()?;
        for pod in pods {
            let run = match (settled.get(&pod.name), now.get(&pod.name)) {
                (Some(was), Some(is)) if was == is && is.ready => Ok(()),
                (was, is) => Err(anyhow::anyhow!(
                    "it was {was:?}, it is {is:?}; events: {:#?}",
                    self.events(&pod.name)
                )),
            };
            self.report.add(&format!("{what}/{}", pod.name), run);
        }
        Ok(())
    }

    /// Checks that pods whose readiness probe fails are not ready, and were not restarted.
    fn stay_unready(&mut self, what: &str) -> Result<()> {
        let now = self.pods()?;
        let failing = table::failing().into_iter();
        for pod in failing.filter(|one| one.kind == Kind::Readiness) {
            let name = &pod.pod.name;
            let run = now.get(name).context("the pod is gone").and_then(|now| {
                ensure!(!now.ready, "it is ready");
                ensure!(now.restarts == 0, "it was restarted {} times", now.restarts);
                Ok(())
            });
            self.report.add(&format!("{what}/{name}"), run);
        }
        Ok(())
    }

    fn rolled_out(&self, what: &str) -> Result<()> {
        let status = ["rollout", "status", "-n", SYSTEM, what];
        let mut args = status.to_vec();
        args.push("--timeout=180s");
        match self.kubectl.run(&args, "") {
            Ok(_) => Ok(()),
            Err(error) => {
                let pods = ["describe", "pods", "-n", SYSTEM];
                let told = self.kubectl.run(&pods, "").unwrap_or_default();
                bail!("{error:#}\n{told}")
            }
        }
    }

    /// Waits until no old daemon is left.
    fn one_daemon_per_node(&self) -> Result<()> {
        until(START, || {
            let pods = pod_status::pods(self.kubectl, SYSTEM)?;
            let nodes = self
                .kubectl
                .get(&["daemonset", "probe-handler", "-n", SYSTEM])?;
            let wanted = nodes["status"]["desiredNumberScheduled"].as_u64();
            Ok(match u64::try_from(pods.len()).ok() == wanted {
                true => Ok(()),
                false => Err(format!("{} daemon pods for {wanted:?} nodes", pods.len())),
            })
        })
    }

    fn exit_code(&self, name: &str) -> Result<i64> {
        until(START, || {
            let seen = self.pods()?.remove(name).unwrap_or_default();
            Ok(seen
                .exit_code
                .ok_or_else(|| format!("{name} has not ended")))
        })
    }
}

/// The daemon's namespace in deploy/.
const SYSTEM: &str = "probe-handler-system";
const DAEMON: &str = "daemonset/probe-handler";

const fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Readiness => "readiness",
        Kind::Liveness => "liveness",
        Kind::Startup => "startup",
    }
}
