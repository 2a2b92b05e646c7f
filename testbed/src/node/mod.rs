//! A simulated Kubernetes node: an API server double with the node's pods, cgroups as the kubelet and the
//! container runtime create them, sandboxes in network namespaces, containers with real processes.
//!
//! The daemon, the kernel, the namespaces, the rules and the probes are real. The rest of the kubelet is
//! missing: tests perform each of its steps, in the normal order or another.

pub mod api;
mod pod;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use kernel::locate::hierarchies;
use serde_json::{Value, json};

use crate::cgroup;
use crate::daemon::DaemonSpec;
use crate::pod::PodSpec;
use crate::run::Run;
use crate::sandbox::Hierarchies;
use api::Api;
pub use pod::{Bound, NodePod, Order, Sandbox};

/// The daemon's rights in a cluster.
const RBAC: &str = include_str!("../../../deploy/base/rbac.yaml");

/// A node.
#[derive(Debug)]
pub struct Node {
    name: String,
    /// The API server.
    pub api: Api,
    hierarchies: Hierarchies,
    next_uid: AtomicU32,
    run: Arc<Run>,
}

impl Node {
    /// A node of this run, with pods' cgroups in each cgroup hierarchy of this machine.
    ///
    /// # Errors
    /// When its API server or its cgroups cannot be created.
    pub fn start(run: &Arc<Run>, name: &str) -> Result<Arc<Self>> {
        Self::with_cgroups(run, name, &usable_hierarchies()?)
    }

    /// The same, with cgroups only below these mounts.
    ///
    /// # Errors
    /// Those of [`Node::start`].
    pub fn with_cgroups(run: &Arc<Run>, name: &str, mounts: &[PathBuf]) -> Result<Arc<Self>> {
        let name = format!("{name}-{}", run.id());
        let node = Self {
            api: Api::start(run, &name)?,
            hierarchies: Hierarchies::new(run, &name, mounts)?,
            next_uid: AtomicU32::new(1),
            run: Arc::clone(run),
            name,
        };
        node.api
            .grant(RBAC, "probe-handler-system", "probe-handler")?;
        node.api.put("namespaces", namespace("testbed", None))?;
        Ok(Arc::new(node))
    }

    /// Its name, the `spec.nodeName` of pods bound to it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The run that it belongs to.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// The directories used as roots of its cgroup hierarchies.
    pub fn cgroups(&self) -> &[PathBuf] {
        self.hierarchies.roots()
    }

    /// Makes a daemon read this node's pods from its API server.
    #[must_use]
    pub fn serve(&self, daemon: DaemonSpec) -> DaemonSpec {
        daemon.kube(&self.name, &self.api.kubeconfig())
    }

    /// Binds a pod to this node: creates only its object, with a new UID.
    ///
    /// # Errors
    /// When the API server is down.
    pub fn bind(self: &Arc<Self>, spec: PodSpec) -> Result<NodePod> {
        NodePod::bind(self, Bound::new(spec))
    }

    /// The same for a pod with special settings.
    ///
    /// # Errors
    /// When the API server is down.
    pub fn bind_as(self: &Arc<Self>, bound: Bound) -> Result<NodePod> {
        NodePod::bind(self, bound)
    }

    /// A UID that is unique across runs.
    fn uid(&self) -> String {
        let number = self.next_uid.fetch_add(1, Ordering::Relaxed);
        let bytes = self.name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3_u64)
        });
        let (high, low) = ((bytes >> 32) & 0xffff_ffff, bytes & 0xffff_ffff_ffff);
        format!(
            "{number:08x}-{:04x}-4{:03x}-8000-{low:012x}",
            high >> 16,
            high & 0xfff
        )
    }
}

/// A namespace, with label `probe-handler.io/mode` if one is given.
pub fn namespace(name: &str, mode: Option<&str>) -> Value {
    let mut metadata = json!({"name": name, "uid": format!("uid-{name}")});
    if let Some(mode) = mode {
        metadata["labels"] = json!({"probe-handler.io/mode": mode});
    }
    json!({"metadata": metadata})
}

/// The mount points of this machine's cgroup hierarchies; of version 1 only those whose new cgroups accept processes at once.
///
/// # Errors
/// When none is mounted.
pub fn usable_hierarchies() -> Result<Vec<PathBuf>> {
    let v2 = cgroup::mount()?;
    // Not cpuset, whose cgroups accept no process until processors and memory are assigned.
    let v1 = hierarchies(None)?
        .into_iter()
        .filter(|mount| *mount != v2 && !mount.ends_with("cpuset"));
    Ok(std::iter::once(v2.clone()).chain(v1).collect())
}
