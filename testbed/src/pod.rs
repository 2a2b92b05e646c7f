//! Pods: a network namespace with a mesh's rules, a sidecar, an app, and the manifest that declares the
//! probes.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::app::{App, AppSpec};
use crate::netns::NetNs;
use crate::pace;
use crate::rules::{RuleSet, Unavailable};
use crate::run::Run;
use crate::sidecar::{Sidecar, Traffic};
use crate::userns::{self, UserNamespace};

/// The settings of a pod to create.
#[derive(Clone, Debug)]
pub struct PodSpec {
    name: String,
    rules: RuleSet,
    app: AppSpec,
    containers: Vec<Value>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    probers: BTreeMap<String, Value>,
    v6_passthrough_source: bool,
    sidecar: bool,
    traffic: Traffic,
    first_uid: u32,
    pod_ips_in_status: bool,
}

impl PodSpec {
    /// A pod without a mesh, whose app has no listeners. The name consists of lower-case letters, digits
    /// and dashes.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            rules: RuleSet::None,
            app: AppSpec::new(),
            containers: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            probers: BTreeMap::new(),
            v6_passthrough_source: true,
            sidecar: true,
            traffic: Traffic::default(),
            first_uid: 0,
            pod_ips_in_status: false,
        }
    }

    /// The mesh: its rules, its sidecar, its changes to the manifest.
    #[must_use]
    pub const fn rules(mut self, rules: RuleSet) -> Self {
        self.rules = rules;
        self
    }

    /// The app's listeners.
    #[must_use]
    pub fn app(mut self, app: AppSpec) -> Self {
        self.app = app;
        self
    }

    /// Adds a container to the manifest's `spec.containers`.
    #[must_use]
    pub fn container(mut self, container: Value) -> Self {
        self.containers.push(container);
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        let _old = self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        let _old = self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds an entry of `ISTIO_KUBE_APP_PROBERS`, as Istio's injector does when it rewrites a probe: the
    /// path on 15020 and the original action.
    #[must_use]
    pub fn istio_prober(mut self, path: &str, prober: Value) -> Self {
        let _old = self.probers.insert(path.to_owned(), prober);
        self
    }

    /// Does not add `::6` to lo, like Istio without IPv6.
    #[must_use]
    pub const fn without_v6_passthrough_source(mut self) -> Self {
        self.v6_passthrough_source = false;
        self
    }

    /// How the sidecar treats inbound traffic, instead of STRICT mutual TLS and the pod's own address.
    #[must_use]
    pub const fn traffic(mut self, traffic: Traffic) -> Self {
        self.traffic = traffic;
        self
    }

    /// Applies the rules without starting the sidecar.
    #[must_use]
    pub const fn without_sidecar(mut self) -> Self {
        self.sidecar = false;
        self
    }

    /// Writes `status.podIPs` into the manifest.
    #[must_use]
    pub const fn with_status(mut self) -> Self {
        self.pod_ips_in_status = true;
        self
    }

    /// Creates the pod, without publishing the manifest: see [`Pod::publish`].
    ///
    /// # Errors
    /// [`Unavailable`] in the chain when this machine does not support the rules.
    pub fn start(self, run: &Run) -> Result<Pod> {
        let ns = NetNs::new(run, &self.name)?;
        let (sidecar, app) = self.fill(&ns, run)?;
        Ok(Pod {
            spec: self,
            app,
            sidecar,
            ns,
            published: None,
        })
    }

    /// Like [`PodSpec::start`], with the addresses of a pod that has ended.
    ///
    /// # Errors
    /// Those of [`PodSpec::start`].
    pub fn start_at(self, ips: (Ipv4Addr, Ipv6Addr), run: &Run) -> Result<Pod> {
        let ns = NetNs::with(run, &self.name, Some(ips), None)?;
        let (sidecar, app) = self.fill(&ns, run)?;
        Ok(Pod {
            spec: self,
            app,
            sidecar,
            ns,
            published: None,
        })
    }

    /// Like [`PodSpec::start`], in a user namespace.
    ///
    /// # Errors
    /// Those of [`PodSpec::start`].
    pub fn start_in(mut self, users: &UserNamespace, run: &Run) -> Result<Pod> {
        self.first_uid = userns::FIRST;
        let ns = NetNs::with(run, &self.name, None, Some(users.pid()))?;
        ns.add_v6_passthrough_source()?;
        users.apply(self.rules)?;
        Ok(Pod {
            sidecar: self.start_sidecar(&ns, run, &[])?,
            app: self.start_app(&ns, &[])?,
            spec: self,
            ns,
            published: None,
        })
    }

    fn fill(&self, ns: &NetNs, run: &Run) -> Result<(Option<Sidecar>, App)> {
        self.prepare(ns)?;
        Ok((self.start_sidecar(ns, run, &[])?, self.start_app(ns, &[])?))
    }

    /// Sets up a namespace as the mesh's init container or CNI plugin does.
    pub(crate) fn prepare(&self, ns: &NetNs) -> Result<()> {
        if self.v6_passthrough_source {
            ns.add_v6_passthrough_source()?;
        }
        self.rules.apply(ns)
    }

    /// Starts the sidecar in these cgroups, if the pod has one.
    pub(crate) fn start_sidecar(
        &self,
        ns: &NetNs,
        run: &Run,
        cgroups: &[PathBuf],
    ) -> Result<Option<Sidecar>> {
        match self.rules.proxy() {
            Some(_) if self.sidecar => {
                let (identity, probers) = (run.mesh(), &self.probers);
                let (traffic, first_uid) = (self.traffic, self.first_uid);
                Sidecar::start(
                    ns, self.rules, identity, traffic, first_uid, probers, cgroups,
                )
                .map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Starts the app in these cgroups.
    pub(crate) fn start_app(&self, ns: &NetNs, cgroups: &[PathBuf]) -> Result<App> {
        App::start_in(ns, &self.app, cgroups)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The manifest of the pod in network namespace `ns`.
    pub fn manifest(&self, ns: &NetNs) -> Value {
        let mut manifest = self.object(&format!("uid-{}", ns.name()));
        manifest["metadata"]["annotations"]["probe-handler.io/netns"] = json!(ns.path());
        if self.pod_ips_in_status {
            manifest["status"] = json!({
                "podIP": ns.ipv4(),
                "podIPs": [{"ip": ns.ipv4()}, {"ip": ns.ipv6()}],
            });
        }
        manifest
    }

    /// The Pod object, with the changes of the mesh's injector.
    pub(crate) fn object(&self, uid: &str) -> Value {
        let mut annotations = self.annotations.clone();
        let marks = self.rules.annotations().iter();
        annotations.extend(marks.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let mut containers = self.containers.clone();
        pace::stretch_probes(&mut containers);
        if let Some(name) = self.rules.sidecar_container() {
            let mut env = Vec::new();
            if !self.probers.is_empty() {
                let probers = json!(self.probers).to_string();
                env.push(json!({"name": "ISTIO_KUBE_APP_PROBERS", "value": probers}));
            }
            if self.traffic.localhost {
                let name = "REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION";
                env.push(json!({"name": name, "value": "true"}));
            }
            containers.push(json!({"name": name, "image": "sidecar", "env": env}));
        }
        let init_containers: Vec<Value> = self.rules.init_container().into_iter().collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": "testbed",
                "uid": uid,
                "labels": self.labels,
                "annotations": annotations,
            },
            "spec": {"containers": containers, "initContainers": init_containers},
        })
    }
}

/// A running pod; dropping it ends its processes and removes its namespace and manifest.
#[derive(Debug)]
pub struct Pod {
    spec: PodSpec,
    /// Its app.
    pub app: App,
    /// Its sidecar, if it has one.
    pub sidecar: Option<Sidecar>,
    // Last field, so that it is dropped after the processes have ended.
    /// Its namespace.
    pub ns: NetNs,
    published: Option<PathBuf>,
}

impl Pod {
    /// The Pod's manifest.
    pub fn manifest(&self) -> Value {
        self.spec.manifest(&self.ns)
    }

    /// Replaces the containers, with effect from the next [`Pod::publish`].
    pub fn set_containers(&mut self, containers: Vec<Value>) {
        self.spec.containers = containers;
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Writes the manifest atomically into a directory that a daemon watches. The content is JSON, which is
    /// valid YAML.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn publish(&mut self, dir: &Path) -> Result<()> {
        let manifest = self.manifest();
        self.publish_as(dir, &manifest)
    }

    /// Like [`Pod::publish`], but with another manifest, for example one that was changed at admission.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn publish_as(&mut self, dir: &Path, manifest: &Value) -> Result<()> {
        let path = dir.join(format!("{}.yaml", self.spec.name));
        let partial = dir.join(format!(".{}.partial", self.spec.name));
        fs::write(&partial, serde_json::to_vec_pretty(manifest)?)
            .and_then(|()| fs::rename(&partial, &path))
            .with_context(|| format!("writing {}", path.display()))?;
        self.published = Some(path);
        Ok(())
    }

    /// Ends its processes and removes its namespace; the manifest stays.
    ///
    /// # Errors
    /// When a process or the namespace cannot be removed.
    pub fn die(&mut self) -> Result<()> {
        self.app.kill()?;
        if let Some(sidecar) = &mut self.sidecar {
            sidecar.kill()?;
        }
        self.ns.remove()
    }

    /// After [`Pod::die`]: creates everything again, with the same addresses and the namespace at the same
    /// path.
    ///
    /// # Errors
    /// Those of [`PodSpec::start`].
    pub fn revive(&mut self, run: &Run) -> Result<()> {
        self.ns.make_again(run)?;
        (self.sidecar, self.app) = self.spec.fill(&self.ns, run)?;
        Ok(())
    }

    /// Removes the manifest, as when the pod is deleted.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn withdraw(&mut self) -> Result<()> {
        match self.published.take() {
            Some(path) => fs::remove_file(&path).with_context(|| path.display().to_string()),
            None => Ok(()),
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Err(error) = self.withdraw() {
            eprintln!("testbed: {error:#}");
        }
    }
}

/// Why this machine does not support a pod, if that caused the error.
pub fn unavailable(error: &anyhow::Error) -> Option<&Unavailable> {
    error.downcast_ref()
}
