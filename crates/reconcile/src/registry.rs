//! Desired pods and known namespaces to endpoints, in the kernel and in the handler's table, as a diff.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use probe_handler_common::endpoint::EndpointValue;

use crate::EndpointWriter;
use crate::endpoints::PodRoutes;
use crate::path::HttpBy;
use model::netns::NetnsId;
use model::{Pod, PodId};
use probe::dial::Dial;
use serve::cost::PodCost;
use serve::table::{Endpoint, EndpointTable, ServedPod};

/// Fewest checks that a pod may have in flight.
const MIN_IN_FLIGHT: usize = 16;
/// Checks in flight for each declared one: the kubelet has one at a time for each probe, but may already
/// send the next while we have not yet noticed that it hung up on the last.
const IN_FLIGHT_PER_ROUTE: usize = 4;

/// At how many addresses a pod is served at most while its status names none: those who may configure its interfaces can
/// make any number.
const UNNAMED: usize = 32;

/// Where a pod can be served.
#[derive(Clone)]
pub struct Placement {
    /// Its network namespace.
    pub netns: NetnsId,
    /// Which of the pod's sandboxes this is: one that is made anew has another number, though the kernel may
    /// give its namespace the old one's.
    pub sandbox: u64,
    /// The namespace's id as seen from the kubelet's.
    pub netns_id: i32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Dials from inside it.
    pub dialer: Arc<dyn Dial>,
    /// What its checks have cost lately.
    pub cost: Arc<PodCost>,
    /// What serves HTTP, where our rules in its namespace let the kernel path serve it; none: the handler serves all.
    pub kernel: Option<HttpBy>,
}

/// What keeps a pod from being served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Its namespace is not known; why.
    NoNamespace(String),
    /// Its canary dial was captured by the mesh's rules; details.
    Captured(String),
    /// To dial inside it costs too much; details.
    Costly(String),
    /// Its loopback interface, over which dials inside it go, is down; details.
    LoDown(String),
}

/// A pod that should be served.
pub struct PodEntry {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Where it is, if known.
    pub placement: Option<Placement>,
    /// Why it is not served, if it is not.
    pub obstacle: Option<Obstacle>,
    /// What is served, wherever it is.
    pub routes: PodRoutes,
    served: Option<Arc<ServedPod>>,
    /// See [`Entry::addresses`].
    addresses: Vec<IpAddr>,
    /// What should stand for it, unless an obstacle is in the way; none: to be worked out.
    wanted: Option<Vec<(SocketAddr, Installed)>>,
    /// The sandbox in which it was found last, and may be no longer.
    sandbox: Option<u64>,
    /// The addresses that its status named when it was found in another sandbox than before, or before this daemon
    /// began: those of the old one, maybe.
    outdated: Option<Vec<IpAddr>>,
}

impl PodEntry {
    /// Where it can be served: the addresses in its namespace and, as soon as its status names any, of those
    /// only the ones named. Who may configure interfaces in a pod could otherwise give it any address that the
    /// kubelet talks to: another pod's, the API server's.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// To be called when pod or placement have changed.
    fn settle(&mut self) {
        let ips = self.named();
        let most = if ips.is_empty() { UNNAMED } else { usize::MAX };
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

    /// The addresses that its status names, where they count. A sandbox that is made anew gets another address,
    /// which the kubelet probes at once but tells the API server later: until it has, the status is of the
    /// sandbox before, and says nothing.
    pub fn named(&self) -> &[IpAddr] {
        match &self.outdated {
            Some(outdated) if *outdated == self.pod.ips && !self.has_one_of(outdated) => &[],
            _ => &self.pod.ips,
        }
    }

    /// Whether one of `ips` is in its namespace: a sandbox may be given the address of the one before.
    fn has_one_of(&self, ips: &[IpAddr]) -> bool {
        let placement = self.placement.as_ref();
        placement.is_some_and(|placement| ips.iter().any(|ip| placement.addresses.contains(ip)))
    }

    /// It is now another object of the same pod.
    fn update(&mut self, pod: Arc<Pod>) {
        let mut routes = PodRoutes::new(&pod);
        routes.carry_over(&self.routes);
        self.routes = routes;
        self.served = None;
        if self.outdated.as_ref() != Some(&pod.ips) {
            self.outdated = None;
        }
        self.pod = pod;
        self.settle();
    }

    /// What should stand for it at its addresses, those `conflicts` left out; none while it is nowhere. What is
    /// `installed` is kept as it is where nothing has changed: statistics and connections hang on it.
    fn work_out(
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
            .into_iter();
        let wanted = endpoints.map(|endpoint| {
            let value = EndpointValue {
                netns_id: placement.netns_id,
                flags: endpoint.flags,
                mesh_port: endpoint.mesh_port.unwrap_or_default().into(),
            };
            let address = endpoint.address;
            let kept = installed
                .get(&address)
                .filter(|now| now.value == value && Arc::ptr_eq(&now.endpoint.pod, served));
            let installed = match kept {
                Some(now) => now.clone(),
                None => Installed {
                    value,
                    endpoint: Arc::new(endpoint.serve(Arc::clone(served))),
                },
            };
            (address, installed)
        });
        Some(wanted.collect())
    }
}

/// What became of the pods named by a source.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// New, or living elsewhere than before: to be looked for.
    pub started: Vec<Arc<Pod>>,
    /// Gone, or living elsewhere than before.
    pub stopped: Vec<PodId>,
}

/// An endpoint as it now stands.
#[derive(Clone)]
struct Installed {
    value: EndpointValue,
    endpoint: Arc<Endpoint>,
}

impl Installed {
    fn same(&self, other: &Self) -> bool {
        self.value == other.value && Arc::ptr_eq(&self.endpoint, &other.endpoint)
    }

    /// Whether both are of one pod in one namespace.
    fn is_of_the_pod_of(&self, other: &Self) -> bool {
        self.endpoint.pod.id == other.endpoint.pod.id && self.value.netns_id == other.value.netns_id
    }
}

/// Turns pods into endpoints.
pub struct Registry<W> {
    /// None until the kernel side is there: what should stand is only noted.
    writer: Option<W>,
    table: Arc<EndpointTable>,
    pods: BTreeMap<String, PodEntry>,
    installed: HashMap<SocketAddr, Installed>,
    /// Addresses that pods in different namespaces claim; served for none of them. Said once each.
    conflicts: BTreeSet<IpAddr>,
    /// Endpoints that the kernel did not take; tried again with every change. Said once each.
    failed: BTreeSet<SocketAddr>,
    /// Endpoints that stand in the kernel though nobody wants them, for they could not be taken out; tried
    /// again with every change. Said once each.
    stuck: BTreeSet<SocketAddr>,
    /// Whether changes are only noted.
    held: bool,
}

impl<W: EndpointWriter> Registry<W> {
    /// An empty registry that writes to the kernel by `writer` and to the handler by `table`.
    pub fn new(writer: W, table: Arc<EndpointTable>) -> Self {
        Self {
            writer: Some(writer),
            ..Self::waiting(table)
        }
    }

    /// An empty registry that notes what should stand, until [`Registry::begin`].
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

    /// The kernel side is there: carries out by `writer` what was noted.
    pub fn begin(&mut self, writer: W) {
        self.writer = Some(writer);
        self.reconcile();
    }

    /// All pods, by UID.
    pub fn pods(&self) -> &BTreeMap<String, PodEntry> {
        &self.pods
    }

    /// Endpoints that now stand, in the kernel and in the table.
    pub fn installed(&self) -> usize {
        self.installed.len()
    }

    /// Endpoints that are not as they should be: the kernel did not take them, or did not give them back.
    pub fn failed(&self) -> usize {
        self.failed.union(&self.stuck).count()
    }

    /// The addresses of `entry` that another pod has too: nobody is served there.
    pub fn conflicts(&self, entry: &PodEntry) -> Vec<IpAddr> {
        let addresses = entry.addresses().iter().copied();
        addresses
            .filter(|address| self.conflicts.contains(address))
            .collect()
    }

    /// The pods are now `pods`, and no others.
    pub fn replace(&mut self, pods: Vec<Arc<Pod>>) -> Replaced {
        let mut replaced = Replaced::default();
        let mut old = std::mem::take(&mut self.pods);
        let mut changed = false;
        for pod in pods {
            let entry = match old.remove(&pod.id.uid) {
                Some(entry) if Arc::ptr_eq(&entry.pod, &pod) || entry.pod == pod => entry,
                Some(mut entry) if stays(&entry.pod, &pod) => {
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
        // Most news of pods is none to us: of their conditions, their containers' states.
        let failed = self.failed() > 0;
        if changed || failed || replaced != Replaced::default() {
            self.reconcile();
        }
        replaced
    }

    /// Pod `uid` was found, or found elsewhere; none: it was lost, or may not be served, for the reason in
    /// `obstacle`. A pod that is no longer known is passed over.
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
        // It is this sandbox's after all, and holds the pod to it from now on.
        if entry
            .outdated
            .as_ref()
            .is_some_and(|outdated| entry.has_one_of(outdated))
        {
            entry.outdated = None;
        }
        entry.obstacle = obstacle;
        entry.settle();
        self.reconcile();
    }

    /// Whether pod `uid` may be served where it is; where it is does not change.
    pub fn set_obstacle(&mut self, uid: &str, obstacle: Option<Obstacle>) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.obstacle = obstacle;
            self.reconcile();
        }
    }

    /// Whether the kernel path may serve pod `uid` where it is, and what serves HTTP then.
    pub fn set_kernel(&mut self, uid: &str, kernel: Option<HttpBy>) {
        if let Some(entry) = self.pods.get_mut(uid)
            && let Some(placement) = &mut entry.placement
            && placement.kernel != kernel
        {
            placement.kernel = kernel;
            entry.wanted = None;
            self.reconcile();
        }
    }

    /// Changes from now on are only noted, until [`Registry::release`].
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Carries out what was noted.
    pub fn release(&mut self) {
        self.held = false;
        self.reconcile();
    }

    /// Makes kernel and table what the pods want. An endpoint stands in the table before the kernel sends
    /// connections its way, and leaves the kernel before it leaves the table.
    fn reconcile(&mut self) {
        if self.held || self.writer.is_none() {
            return;
        }
        let wanted = self.wanted();
        let gone: Vec<SocketAddr> = self
            .installed
            .iter()
            .filter(|(address, now)| {
                // One that goes to another pod is taken away first: for a moment it is nobody's.
                wanted
                    .get(*address)
                    .is_none_or(|new| !new.same(now) && !new.is_of_the_pod_of(now))
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
                    // What stood there before still does, in the kernel.
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

    /// Takes an endpoint out of the kernel, then out of the table.
    fn withdraw(&mut self, address: SocketAddr) {
        self.take(address);
        let _ = self.table.remove(address);
        let _ = self.installed.remove(&address);
    }

    /// Takes an endpoint out of the kernel. Where that fails the handler, which finds it in no table, only
    /// relays what is sent its way.
    fn take(&mut self, address: SocketAddr) {
        let writer = self.writer.as_mut();
        match writer.map_or(Ok(()), |writer| writer.take(address)) {
            Ok(()) => {
                let _ = self.stuck.remove(&address);
            }
            Err(error) => {
                if self.stuck.insert(address) {
                    tracing::error!(%address, %error, "cannot remove an endpoint from the kernel: trying again with the next change");
                }
            }
        }
    }

    /// The endpoints that should stand.
    fn wanted(&mut self) -> HashMap<SocketAddr, Installed> {
        if self.settle_contests() {
            for entry in self.pods.values_mut() {
                entry.wanted = None;
            }
        }
        let mut wanted = HashMap::with_capacity(self.installed.len());
        for entry in self.pods.values_mut() {
            if entry.obstacle.is_some() {
                continue;
            }
            if entry.wanted.is_none() {
                entry.wanted = entry.work_out(&self.conflicts, &self.installed);
            }
            for (address, installed) in entry.wanted.iter().flatten() {
                // Two pods in one namespace (a mistake in a directory's manifests): the first one has it.
                let _ = wanted.entry(*address).or_insert_with(|| installed.clone());
            }
        }
        wanted
    }

    /// Finds the addresses that more than one namespace claims. Which pod the node would reach there is
    /// not known, so nobody is answered for. Tells whether they are others than before.
    fn settle_contests(&mut self) -> bool {
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

/// Whether a pod that changed can be served from where it is: nothing that decides about its namespace or
/// the way it is dialled is different.
fn stays(old: &Pod, new: &Pod) -> bool {
    (&old.netns, old.mesh, old.proxy_uid) == (&new.netns, new.mesh, new.proxy_uid)
}

#[cfg(test)]
mod tests;
