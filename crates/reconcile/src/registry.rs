//! Computes endpoints from pods and their namespaces, and applies the differences to the kernel and the handler's table.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use probe_handler_common::endpoint::EndpointValue;

use crate::EndpointWriter;
use crate::endpoints::PodRoutes;
use crate::path::{self, KernelUse};
use crate::redirects::Redirects;
use model::netns::NetnsId;
use model::{Pod, PodId};
use probe::dial::Dial;
use serve::cost::PodCost;
use serve::table::{Endpoint, EndpointTable, Routes, ServedPod};

/// The lowest limit of checks in flight for a pod.
const MIN_IN_FLIGHT: usize = 16;
/// Checks in flight for each route. The kubelet makes one at a time for each probe, but may begin the next
/// before we notice that it has closed the connection of the last.
const IN_FLIGHT_PER_ROUTE: usize = 4;

/// At most this many addresses of a pod are served while its status contains none, because a process that may configure
/// its interfaces can add any number.
const MAX_WITHOUT_STATUS: usize = 32;

/// Where a pod can be served.
#[derive(Clone)]
pub struct Placement {
    /// Its network namespace.
    pub netns: NetnsId,
    /// Number of the pod's sandbox: a new sandbox has another number, even if the kernel reuses the old one's
    /// namespace number.
    pub sandbox: u64,
    /// The namespace's id as seen from the kubelet's namespace.
    pub netns_id: i32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Dials from inside the namespace.
    pub dialer: Arc<dyn Dial>,
    /// What its checks have cost recently.
    pub cost: Arc<PodCost>,
    /// Which path serves HTTP, if our rules are in its namespace; `None`: the handler serves all its probes.
    pub kernel: Option<KernelUse>,
    /// The ports that its own rules redirect, which are not served.
    pub redirects: Redirects,
}

/// Why the handler does not serve a pod. The kernel path, which does not need the daemon's dials, still serves it if its
/// namespace is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Its namespace is not known; the reason.
    NoNamespace(String),
    /// Its canary dial was captured by the mesh's rules; details.
    Captured(String),
    /// Dialling inside it costs too much; details.
    Costly(String),
    /// Its loopback interface, which dials inside it use, is down; details.
    LoDown(String),
}

/// A pod that should be served.
pub struct PodEntry {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Where it can be served, if known.
    pub placement: Option<Placement>,
    /// Why the handler does not serve it; `None` if it does.
    pub obstacle: Option<Obstacle>,
    /// Its routes, which do not depend on the placement.
    pub routes: PodRoutes,
    served: Option<Arc<ServedPod>>,
    /// See [`PodEntry::addresses`].
    addresses: Vec<IpAddr>,
    /// The endpoints that should exist for it if there is no obstacle; `None`: not computed yet. See
    /// [`Installed::by_kernel_alone`].
    wanted: Option<Vec<(SocketAddr, Installed)>>,
    /// The sandbox in which it was found last.
    sandbox: Option<u64>,
    /// The addresses in its status when it was found in a new sandbox, or before this daemon started. They may be those
    /// of the old sandbox.
    outdated: Option<Vec<IpAddr>>,
}

impl PodEntry {
    /// The addresses at which it can be served: those in its namespace, and once its status contains any, only
    /// those that are also there. Otherwise a process that may configure the pod's interfaces could give it
    /// any address that the kubelet connects to: another pod's, the API server's.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Whether only the kernel path serves it.
    pub fn is_by_kernel_alone(&self) -> bool {
        let placement = self.placement.as_ref();
        let by_kernel = placement.and_then(|placement| placement.kernel);
        // Nothing shows that a fallback works.
        self.obstacle.is_some() && matches!(by_kernel, Some(KernelUse::First(_)))
    }

    /// Recomputes the addresses. Must be called when the pod or its placement has changed.
    fn update_addresses(&mut self) {
        let ips = self.named();
        let most = if ips.is_empty() {
            MAX_WITHOUT_STATUS
        } else {
            usize::MAX
        };
        self.addresses = self
            .placement
            .iter()
            .flat_map(|placement| &placement.addresses)
            .map(IpAddr::to_canonical)
            .filter(|address| ips.is_empty() || ips.contains(address))
            .take(most)
            .collect();
        self.wanted = None;
    }

    /// The addresses in its status, if they are current. A new sandbox gets another address, which the kubelet
    /// probes at once but reports to the API server later. Until then the status contains the address of the
    /// old sandbox, and is ignored.
    pub fn named(&self) -> &[IpAddr] {
        match &self.outdated {
            Some(outdated) if *outdated == self.pod.ips && !self.has_one_of(outdated) => &[],
            _ => &self.pod.ips,
        }
    }

    /// Whether one of `ips` is in its namespace: a new sandbox may get the address of the old one.
    fn has_one_of(&self, ips: &[IpAddr]) -> bool {
        let placement = self.placement.as_ref();
        placement.is_some_and(|placement| ips.iter().any(|ip| placement.addresses.contains(ip)))
    }

    /// Replaces the pod by a newer version of the same object.
    fn update(&mut self, pod: Arc<Pod>) {
        let mut routes = PodRoutes::new(&pod);
        routes.carry_over(&self.routes);
        self.routes = routes;
        self.served = None;
        if self.outdated.as_ref() != Some(&pod.ips) {
            self.outdated = None;
        }
        self.pod = pod;
        self.update_addresses();
    }

    /// Computes the endpoints that should exist at its addresses, without those in `conflicts`; `None` while it has
    /// no placement. Reuses unchanged endpoints of `installed`, because statistics and connections refer to them.
    fn compute_wanted(
        &mut self,
        conflicts: &BTreeSet<IpAddr>,
        installed: &HashMap<SocketAddr, Installed>,
    ) -> Option<Vec<(SocketAddr, Installed)>> {
        let placement = self.placement.as_ref()?;
        let served = self.served.get_or_insert_with(|| {
            let routes = self.routes.routes().len();
            Arc::new(ServedPod {
                id: self.pod.id.clone(),
                mesh: self.pod.mesh,
                dialer: Arc::clone(&placement.dialer),
                cost: Arc::clone(&placement.cost),
                max_in_flight: (routes * IN_FLIGHT_PER_ROUTE).max(MIN_IN_FLIGHT),
                in_flight: AtomicUsize::new(0),
            })
        });
        let addresses: Vec<IpAddr> = self
            .addresses
            .iter()
            .filter(|address| !conflicts.contains(address))
            .copied()
            .collect();
        let endpoints = self
            .routes
            .endpoints(&addresses, placement.kernel)
            .into_iter()
            .filter(|endpoint| {
                let is_rewritten = matches!(endpoint.routes, Routes::Rewritten(_));
                is_rewritten || placement.redirects.leads(endpoint.address).is_none()
            });
        let wanted = endpoints.map(|endpoint| {
            let value = EndpointValue {
                netns_id: placement.netns_id,
                flags: endpoint.flags,
                mesh_port: endpoint.mesh_port.unwrap_or_default().into(),
            };
            let address = endpoint.address;
            let kept = installed
                .get(&address)
                .filter(|now| Arc::ptr_eq(&now.endpoint.pod, served));
            let endpoint = match kept {
                Some(now) => Arc::clone(&now.endpoint),
                None => Arc::new(endpoint.serve(Arc::clone(served))),
            };
            (address, Installed { value, endpoint })
        });
        Some(wanted.collect())
    }
}

/// How [`Registry::replace`] changed the pods.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// New, or changed so that the old placement no longer holds: the caller must find their namespaces.
    pub started: Vec<Arc<Pod>>,
    /// Removed, or changed so that the old placement no longer holds.
    pub stopped: Vec<PodId>,
}

/// An installed endpoint.
#[derive(Clone)]
struct Installed {
    value: EndpointValue,
    endpoint: Arc<Endpoint>,
}

impl Installed {
    fn same(&self, other: &Self) -> bool {
        self.value == other.value && Arc::ptr_eq(&self.endpoint, &other.endpoint)
    }

    /// The endpoint with the kernel path only, if it has one: the handler can't serve the pod.
    fn by_kernel_alone(&self) -> Option<Self> {
        let flags = path::by_kernel_alone(self.value.flags)?;
        let mut this = self.clone();
        this.value.flags = flags;
        Some(this)
    }

    /// Whether both belong to one pod in one namespace.
    fn has_same_pod(&self, other: &Self) -> bool {
        self.endpoint.pod.id == other.endpoint.pod.id && self.value.netns_id == other.value.netns_id
    }
}

/// Turns pods into endpoints.
pub struct Registry<W> {
    /// `None` until the eBPF programs are loaded. Until then changes are only recorded.
    writer: Option<W>,
    table: Arc<EndpointTable>,
    pods: BTreeMap<String, PodEntry>,
    installed: HashMap<SocketAddr, Installed>,
    /// Addresses that pods in different namespaces have; served for none of them. Logged once each.
    conflicts: BTreeSet<IpAddr>,
    /// Endpoints that could not be added to the kernel; tried again with every change. Logged once each.
    failed: BTreeSet<SocketAddr>,
    /// Obsolete endpoints that could not be removed from the kernel; tried again with every change. Logged once
    /// each.
    stuck: BTreeSet<SocketAddr>,
    /// Whether changes are only recorded: see [`Registry::hold`].
    held: bool,
}

impl<W: EndpointWriter> Registry<W> {
    /// An empty registry that writes to the kernel through `writer`, and to the handler's `table`.
    pub fn new(writer: W, table: Arc<EndpointTable>) -> Self {
        Self {
            writer: Some(writer),
            ..Self::waiting(table)
        }
    }

    /// An empty registry that only records changes until [`Registry::begin`].
    pub fn waiting(table: Arc<EndpointTable>) -> Self {
        Self {
            writer: None,
            table,
            pods: BTreeMap::new(),
            installed: HashMap::new(),
            conflicts: BTreeSet::new(),
            failed: BTreeSet::new(),
            stuck: BTreeSet::new(),
            held: false,
        }
    }

    /// Applies the recorded changes through `writer`, once the eBPF programs are loaded.
    pub fn begin(&mut self, writer: W) {
        self.writer = Some(writer);
        self.reconcile();
    }

    /// All pods, by UID.
    pub fn pods(&self) -> &BTreeMap<String, PodEntry> {
        &self.pods
    }

    /// The number of endpoints installed in the kernel and in the table.
    pub fn installed(&self) -> usize {
        self.installed.len()
    }

    /// The number of endpoints that could not be added to the kernel, or removed from it.
    pub fn failed(&self) -> usize {
        self.failed.union(&self.stuck).count()
    }

    /// The addresses of `entry` that another pod has too: neither pod is served there.
    pub fn conflicts(&self, entry: &PodEntry) -> Vec<IpAddr> {
        let addresses = entry.addresses().iter().copied();
        addresses
            .filter(|address| self.conflicts.contains(address))
            .collect()
    }

    /// Replaces all pods by `pods`.
    pub fn replace(&mut self, pods: Vec<Arc<Pod>>) -> Replaced {
        let mut replaced = Replaced::default();
        let mut old = std::mem::take(&mut self.pods);
        let mut changed = false;
        for pod in pods {
            let entry = match old.remove(&pod.id.uid) {
                Some(entry) if Arc::ptr_eq(&entry.pod, &pod) || entry.pod == pod => entry,
                Some(mut entry) if keeps_placement(&entry.pod, &pod) => {
                    entry.update(pod);
                    changed = true;
                    entry
                }
                gone => {
                    replaced
                        .stopped
                        .extend(gone.map(|entry| entry.pod.id.clone()));
                    replaced.started.push(Arc::clone(&pod));
                    PodEntry {
                        routes: PodRoutes::new(&pod),
                        placement: None,
                        obstacle: Some(Obstacle::NoNamespace("not looked for yet".to_owned())),
                        served: None,
                        addresses: Vec::new(),
                        wanted: None,
                        sandbox: None,
                        outdated: pod.ips_are_old.then(|| pod.ips.clone()),
                        pod,
                    }
                }
            };
            let _ = self.pods.insert(entry.pod.id.uid.clone(), entry);
        }
        replaced
            .stopped
            .extend(old.into_values().map(|entry| entry.pod.id.clone()));
        // Most updates change only conditions or container states, which do not matter here.
        let failed = self.failed() > 0;
        if changed || failed || replaced != Replaced::default() {
            self.reconcile();
        }
        replaced
    }

    /// Sets the placement of pod `uid`; `None`: it was lost. `obstacle`: why the handler may not serve it, if it may not.
    /// Ignores a pod that is no longer in the registry.
    pub fn place(&mut self, uid: &str, placement: Option<Placement>, obstacle: Option<Obstacle>) {
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        let moved = match (&entry.placement, &placement) {
            (Some(old), Some(new)) => {
                old.netns != new.netns || !Arc::ptr_eq(&old.dialer, &new.dialer)
            }
            (None, None) => false,
            _ => true,
        };
        if moved {
            entry.served = None;
        }
        if let Some(placement) = &placement {
            let before = entry.sandbox.replace(placement.sandbox);
            if before.is_some_and(|before| before != placement.sandbox) {
                entry.outdated = Some(entry.pod.ips.clone());
            }
        }
        entry.placement = placement;
        // The status does belong to this sandbox, so from now on it limits the addresses again.
        if entry
            .outdated
            .as_ref()
            .is_some_and(|outdated| entry.has_one_of(outdated))
        {
            entry.outdated = None;
        }
        entry.obstacle = obstacle;
        entry.update_addresses();
        self.reconcile();
    }

    /// Sets whether the handler may serve pod `uid`, without changing its placement.
    pub fn set_obstacle(&mut self, uid: &str, obstacle: Option<Obstacle>) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.obstacle = obstacle;
            self.reconcile();
        }
    }

    /// Sets whether the kernel path may serve pod `uid`, and which path serves HTTP then.
    pub fn set_kernel(&mut self, uid: &str, kernel: Option<KernelUse>) {
        if let Some(entry) = self.pods.get_mut(uid)
            && let Some(placement) = &mut entry.placement
            && placement.kernel != kernel
        {
            placement.kernel = kernel;
            entry.wanted = None;
            self.reconcile();
        }
    }

    /// Sets the ports of pod `uid` that its own rules redirect.
    pub fn set_redirects(&mut self, uid: &str, redirects: Redirects) {
        if let Some(entry) = self.pods.get_mut(uid)
            && let Some(placement) = &mut entry.placement
            && placement.redirects != redirects
        {
            placement.redirects = redirects;
            entry.wanted = None;
            self.reconcile();
        }
    }

    /// Records changes from now on without applying them, until [`Registry::release`].
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Applies the recorded changes.
    pub fn release(&mut self) {
        self.held = false;
        self.reconcile();
    }

    /// Makes kernel and table match the pods. An endpoint is added to the table before the kernel redirects
    /// connections to it, and removed from the kernel before it is removed from the table.
    fn reconcile(&mut self) {
        if self.held || self.writer.is_none() {
            return;
        }
        let wanted = self.wanted();
        let gone: Vec<SocketAddr> = self
            .installed
            .iter()
            .filter(|(address, now)| {
                // An address that moves to another pod is removed first, so it is briefly not served.
                wanted
                    .get(*address)
                    .is_none_or(|new| !new.same(now) && !new.has_same_pod(now))
            })
            .map(|(address, _)| *address)
            .collect();
        for address in self.stuck.clone() {
            self.take(address);
        }
        for address in gone {
            self.withdraw(address);
        }
        let failed_before = std::mem::take(&mut self.failed);
        for (address, new) in wanted {
            let before = self.installed.get(&address);
            if before.is_some_and(|now| now.same(&new)) {
                continue;
            }
            let stood = before.is_some();
            self.table.insert(Arc::clone(&new.endpoint));
            let writer = self.writer.as_mut();
            match writer.map_or(Ok(()), |writer| writer.put(address, new.value)) {
                Ok(()) => {
                    let _ = self.stuck.remove(&address);
                    let _ = self.installed.insert(address, new);
                }
                Err(error) => {
                    if !failed_before.contains(&address) {
                        tracing::error!(
                            %address, pod = %new.endpoint.pod.id, %error,
                            "cannot put an endpoint into the kernel: its probes are not served; if the map is \
                             full, raise --endpoints-capacity"
                        );
                    }
                    // If there was an endpoint before, the kernel still has it.
                    if stood {
                        self.withdraw(address);
                    } else {
                        let _ = self.table.remove(address);
                    }
                    let _ = self.failed.insert(address);
                }
            }
        }
    }

    /// Removes an endpoint from the kernel, then from the table.
    fn withdraw(&mut self, address: SocketAddr) {
        self.take(address);
        let _ = self.table.remove(address);
        let _ = self.installed.remove(&address);
    }

    /// Removes an endpoint from the kernel. If that fails, the handler relays connections to the endpoint,
    /// because it does not find it in the table.
    fn take(&mut self, address: SocketAddr) {
        let writer = self.writer.as_mut();
        match writer.map_or(Ok(()), |writer| writer.take(address)) {
            Ok(()) => {
                let _ = self.stuck.remove(&address);
            }
            Err(error) => {
                if self.stuck.insert(address) {
                    tracing::error!(
                        %address, %error,
                        "cannot remove an endpoint from the kernel: trying again with the next change"
                    );
                }
            }
        }
    }

    /// The endpoints that should exist.
    fn wanted(&mut self) -> HashMap<SocketAddr, Installed> {
        if self.update_conflicts() {
            for entry in self.pods.values_mut() {
                entry.wanted = None;
            }
        }
        let mut wanted = HashMap::with_capacity(self.installed.len());
        for entry in self.pods.values_mut() {
            if entry.wanted.is_none() {
                entry.wanted = entry.compute_wanted(&self.conflicts, &self.installed);
            }
            for (address, installed) in entry.wanted.iter().flatten() {
                let installed = match &entry.obstacle {
                    None => Some(installed.clone()),
                    Some(_) => installed.by_kernel_alone(),
                };
                // Two pods in one namespace (a mistake in a directory's manifests): the first one is served.
                if let Some(installed) = installed {
                    let _ = wanted.entry(*address).or_insert(installed);
                }
            }
        }
        wanted
    }

    /// Finds the addresses that are in more than one namespace. It is not known which of the pods the node would
    /// reach there, so none is served. Returns whether these addresses have changed.
    fn update_conflicts(&mut self) -> bool {
        let mut owners: HashMap<IpAddr, (NetnsId, &PodId)> = HashMap::new();
        let mut conflicts = BTreeSet::new();
        for entry in self.pods.values() {
            let Some(placement) = &entry.placement else {
                continue;
            };
            for &address in entry.addresses() {
                match owners.get(&address) {
                    None => {
                        let _ = owners.insert(address, (placement.netns, &entry.pod.id));
                    }
                    Some((netns, _)) if *netns == placement.netns => {}
                    Some((_, other)) => {
                        if conflicts.insert(address) && !self.conflicts.contains(&address) {
                            tracing::warn!(
                                %address, pod = %entry.pod.id, %other,
                                "two pods have the same address: the probes of neither are served there"
                            );
                        }
                    }
                }
            }
        }
        let others = self.conflicts != conflicts;
        self.conflicts = conflicts;
        others
    }
}

/// Whether a changed pod keeps its placement: nothing has changed that decides its namespace or how it is
/// dialled.
fn keeps_placement(old: &Pod, new: &Pod) -> bool {
    let decisive = |pod: &Pod| (pod.netns.clone(), pod.mesh, pod.localhost, pod.proxy_uid);
    decisive(old) == decisive(new)
}

#[cfg(test)]
mod tests;
