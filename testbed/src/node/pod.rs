//! One pod on the node, from its binding to its deletion, step by step.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Node;
use crate::app::App;
use crate::netns::NetNs;
use crate::pod::PodSpec;
use crate::sandbox::{Container, Network, PodCgroup};
use crate::sidecar::Sidecar;

/// Order of creation in a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// First the network (namespace, addresses, the mesh's rules), then the sandbox's process (containerd,
    /// CRI-O).
    NetworkFirst,
    /// First the process with an empty namespace, then its network (cri-dockerd).
    ProcessFirst,
}

/// The settings of a pod to bind.
#[derive(Clone, Debug)]
pub struct Bound {
    spec: PodSpec,
    namespace: Option<String>,
    hash: Option<String>,
    path: fn(&str) -> String,
    host_network: bool,
    scheduled: bool,
    change: Option<fn(&mut Value)>,
}

impl Bound {
    /// A burstable pod with cgroup names of the cgroupfs driver.
    pub fn new(spec: PodSpec) -> Self {
        Self {
            spec,
            namespace: None,
            hash: None,
            path: |uid| format!("kubepods/burstable/pod{uid}"),
            host_network: false,
            scheduled: true,
            change: None,
        }
    }

    /// Another namespace than `testbed`.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// The mirror of a static pod, which the kubelet identifies by this hash of its manifest.
    #[must_use]
    pub fn mirror(mut self, hash: &str) -> Self {
        self.hash = Some(hash.to_owned());
        self
    }

    /// Another path of its cgroup.
    #[must_use]
    pub const fn cgroup(mut self, path: fn(&str) -> String) -> Self {
        self.path = path;
        self
    }

    /// In the host network.
    #[must_use]
    pub const fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// Not bound to a node until [`NodePod::schedule`].
    #[must_use]
    pub const fn unscheduled(mut self) -> Self {
        self.scheduled = false;
        self
    }

    /// Changes the object before it is bound.
    #[must_use]
    pub const fn change(mut self, change: fn(&mut Value)) -> Self {
        self.change = Some(change);
        self
    }
}

/// A pod bound to the node. Dropping it ends its processes, removes its resources on the node and deletes
/// its object.
#[derive(Debug)]
pub struct NodePod {
    /// Its sandbox, if it has one.
    pub sandbox: Option<Sandbox>,
    cgroup: PodCgroup,
    cgroup_made: bool,
    spec: PodSpec,
    host_network: bool,
    /// Its object in the API server; `None` after its deletion.
    object: Option<Value>,
    node: Arc<Node>,
}

/// A sandbox and its processes. Fields drop in this order.
#[derive(Debug)]
pub struct Sandbox {
    /// The app.
    pub app: Option<App>,
    /// The mesh's sidecar.
    pub sidecar: Option<Sidecar>,
    /// The process that holds the sandbox.
    pub pause: Option<Container>,
    /// Its network namespace.
    pub ns: NetNs,
}

impl NodePod {
    pub(super) fn bind(node: &Arc<Node>, bound: Bound) -> Result<Self> {
        let uid = node.uid();
        let mut object = bound.spec.object(&uid);
        if bound.scheduled {
            object["spec"]["nodeName"] = json!(node.name());
        }
        object["status"] = json!({"phase": "Pending", "conditions":
            [{"type": "PodScheduled", "status": "True"}]});
        if let Some(namespace) = &bound.namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        let mut known_as = uid;
        if let Some(hash) = bound.hash {
            let annotations = &mut object["metadata"]["annotations"];
            annotations["kubernetes.io/config.hash"] = json!(hash);
            annotations["kubernetes.io/config.mirror"] = json!(hash);
            annotations["kubernetes.io/config.source"] = json!("file");
            known_as = hash;
        }
        if bound.host_network {
            object["spec"]["hostNetwork"] = json!(true);
        }
        if let Some(change) = bound.change {
            change(&mut object);
        }
        let pod = Self {
            sandbox: None,
            cgroup: node.hierarchies.pod(&(bound.path)(&known_as)),
            cgroup_made: false,
            spec: bound.spec,
            host_network: bound.host_network,
            object: Some(object),
            node: Arc::clone(node),
        };
        pod.put()?;
        Ok(pod)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.spec.name()
    }

    /// Its UID in the API, which a mirror pod's cgroup does not contain; empty after its deletion.
    pub fn uid(&self) -> &str {
        let object = self.object.as_ref();
        object
            .and_then(|object| object["metadata"]["uid"].as_str())
            .unwrap_or_default()
    }

    /// Its sandbox.
    ///
    /// # Errors
    /// When it has none.
    pub fn sandbox(&mut self) -> Result<&mut Sandbox> {
        let name = self.spec.name();
        self.sandbox
            .as_mut()
            .with_context(|| format!("pod {name} has no sandbox"))
    }

    /// Its network namespace.
    ///
    /// # Errors
    /// When it has no sandbox.
    pub fn ns(&self) -> Result<&NetNs> {
        let sandbox = self.sandbox.as_ref();
        let sandbox = sandbox.with_context(|| format!("pod {} has no sandbox", self.name()))?;
        Ok(&sandbox.ns)
    }

    fn put(&self) -> Result<()> {
        let object = self.object.clone().context("the pod was deleted")?;
        self.node.api.put("pods", object)
    }

    /// Changes its object in the API server.
    ///
    /// # Errors
    /// When it was deleted, or the API server is down.
    pub fn update(&mut self, change: impl FnOnce(&mut Value)) -> Result<()> {
        change(self.object.as_mut().context("the pod was deleted")?);
        self.put()
    }

    /// Binds it to the node.
    ///
    /// # Errors
    /// Those of [`NodePod::update`].
    pub fn schedule(&mut self) -> Result<()> {
        let node = json!(self.node.name());
        self.update(|object| object["spec"]["nodeName"] = node)
    }

    /// Creates its cgroups, as the kubelet does first.
    ///
    /// # Errors
    /// When they cannot be created.
    pub fn make_cgroup(&mut self) -> Result<()> {
        self.cgroup_made = true;
        self.cgroup.make()
    }

    /// Creates its sandbox, and its cgroups if they do not exist yet.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn start_sandbox(&mut self, order: Order) -> Result<()> {
        self.start_sandbox_at(order, None)
    }

    /// The same with given addresses: those of an earlier pod.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn start_sandbox_at(
        &mut self,
        order: Order,
        ips: Option<(Ipv4Addr, Ipv6Addr)>,
    ) -> Result<()> {
        if !self.cgroup_made {
            self.make_cgroup()?;
        }
        // A namespace's name can be reused only after the kernel has removed the namespace.
        let name = format!("{}-{}", self.name(), self.cgroup.containers());
        let run = self.node.run();
        let (ns, pause) = match order {
            Order::NetworkFirst => {
                let ns = NetNs::with(run, &name, ips, None)?;
                self.spec.prepare(&ns)?;
                let path = ns.path();
                let pause = self.cgroup.container(Network::At(&path))?;
                (ns, pause)
            }
            Order::ProcessFirst => {
                let pause = self.cgroup.container(Network::New)?;
                let ns = NetNs::with(run, &name, ips, Some(pause.pid()))?;
                self.spec.prepare(&ns)?;
                (ns, pause)
            }
        };
        self.sandbox = Some(Sandbox {
            app: None,
            sidecar: None,
            pause: Some(pause),
            ns,
        });
        Ok(())
    }

    /// Starts the mesh's sidecar, if the pod has one, and then the app, each as a container.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start_containers(&mut self) -> Result<()> {
        self.start_sidecar()?;
        self.start_app()
    }

    /// Starts the mesh's sidecar, if the pod has one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_sidecar(&mut self) -> Result<()> {
        let cgroups = self.cgroup.container_cgroups()?;
        let sandbox = self.sandbox.as_mut().context("no sandbox")?;
        sandbox.sidecar = self
            .spec
            .start_sidecar(&sandbox.ns, self.node.run(), &cgroups)?;
        Ok(())
    }

    /// Starts the app in a new container; kills a running one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_app(&mut self) -> Result<()> {
        let cgroups = self.cgroup.container_cgroups()?;
        let sandbox = self.sandbox.as_mut().context("no sandbox")?;
        drop(sandbox.app.take());
        sandbox.app = Some(self.spec.start_app(&sandbox.ns, &cgroups)?);
        Ok(())
    }

    /// Starts a container that does nothing, in the sandbox's network or, for a pod of the host network, in
    /// the node's. Calls `about_to_run` just before its program starts.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn idle_container<T>(
        &mut self,
        about_to_run: impl FnOnce() -> T,
    ) -> Result<(Container, T)> {
        let pause = self.sandbox.as_ref().and_then(|it| it.pause.as_ref());
        let network = match pause {
            _ if self.host_network => Network::Host,
            Some(pause) => Network::Of(pause),
            None => anyhow::bail!("pod {} has no sandbox", self.name()),
        };
        self.cgroup.container_told(network, about_to_run)
    }

    /// Reports the sandbox and its containers as the kubelet does: phase `Running`, and the addresses.
    ///
    /// # Errors
    /// When there is no sandbox, or the API server is down.
    pub fn report_running(&mut self) -> Result<()> {
        let (ipv4, ipv6) = (self.ns()?.ipv4(), self.ns()?.ipv6());
        self.update(|object| {
            object["status"] = json!({
                "phase": "Running",
                "conditions": [
                    {"type": "PodScheduled", "status": "True"},
                    {"type": "Ready", "status": "True"},
                ],
                "podIP": ipv4,
                "podIPs": [{"ip": ipv4}, {"ip": ipv6}],
            });
        })
    }

    /// All steps above, in the order of a normal start.
    ///
    /// # Errors
    /// As those.
    pub fn run(&mut self) -> Result<()> {
        self.start_sandbox(Order::NetworkFirst)?;
        self.start_containers()?;
        self.report_running()
    }

    /// Deletes the pod as a client does: it is terminating, and its containers still run.
    ///
    /// # Errors
    /// When it was deleted before, or the API server is down.
    pub fn terminate(&mut self) -> Result<()> {
        self.update(|object| {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            object["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        })
    }

    /// Ends all containers and the sandbox; the object and the pod's own cgroup remain.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn stop(&mut self) -> Result<()> {
        match self.sandbox.take() {
            Some(sandbox) => sandbox.stop(),
            None => Ok(()),
        }
    }

    /// Removes its cgroups after it has stopped.
    ///
    /// # Errors
    /// When a process still runs.
    pub fn remove_cgroup(&mut self) -> Result<()> {
        if self.cgroup_made {
            self.cgroup_made = false;
            self.cgroup.remove()?;
        }
        Ok(())
    }

    /// Removes its object, as after the kubelet has reported that the pod has stopped, or after a forced deletion.
    ///
    /// # Errors
    /// When the API server is down.
    pub fn delete(&mut self) -> Result<()> {
        let Some(object) = self.object.take() else {
            return Ok(());
        };
        let text = |field: &str| {
            object["metadata"][field]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let (namespace, name) = (text("namespace"), text("name"));
        self.node
            .api
            .order(|server| server.delete("pods", &namespace, &name))
            .map(drop)
    }

    /// Ends a pod in the normal order.
    ///
    /// # Errors
    /// As its parts.
    pub fn end(&mut self) -> Result<()> {
        self.stop()?;
        self.remove_cgroup()?;
        self.delete()
    }
}

impl Sandbox {
    /// Kills its processes and removes its namespace.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn stop(mut self) -> Result<()> {
        if let Some(mut app) = self.app.take() {
            app.kill()?;
        }
        if let Some(mut sidecar) = self.sidecar.take() {
            sidecar.kill()?;
        }
        drop(self.pause.take());
        self.ns.remove()
    }
}

impl Drop for NodePod {
    fn drop(&mut self) {
        drop(self.sandbox.take());
        if let Err(error) = self.remove_cgroup() {
            eprintln!("testbed: {error:#}");
        }
        if self.object.is_some() {
            // The API server may be stopped; then the object no longer exists.
            let _away = self.delete();
        }
    }
}
