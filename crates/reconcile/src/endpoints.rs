//! Turns a pod into the endpoints that the handler serves. Probes with indistinguishable requests share a
//! route, and all addresses of a pod share its routes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::path::{self, KernelUse};
use model::bounds::PROBES_LIMIT;
use model::inbound::Inbound;
use model::{Action, HttpBy, Pod, Probe, ProbeMode, Rewritten, Scheme};
use serve::table::{Endpoint, HttpRoute, NativeRoutes, Route, RouteStats, Routes, ServedPod};

/// Maximum number of endpoints of one pod: two addresses, with each probe on its own port. Without a limit, a process
/// that may add addresses to a pod could fill the kernel's map, which all pods share.
const MAX_ENDPOINTS: usize = 2 * PROBES_LIMIT;

/// An endpoint that should exist, not yet bound to a [`ServedPod`].
#[derive(Clone)]
pub struct WantedEndpoint {
    /// Pod IP and port, as the kubelet dials it.
    pub address: SocketAddr,
    /// `GATE`, `REDIRECT` and `KERNEL` of `probe_handler_common::endpoint`.
    pub flags: u32,
    /// The port on which the pod's mesh listens for inbound connections.
    pub mesh_port: Option<u16>,
    /// The checks served there.
    pub routes: Routes,
}

impl WantedEndpoint {
    /// Binds the endpoint to `pod`.
    pub fn serve(self, pod: Arc<ServedPod>) -> Endpoint {
        Endpoint {
            address: self.address,
            pod,
            routes: self.routes,
        }
    }
}

/// All routes of one pod, by port. Addresses are given later: they may be unknown until the pod's network
/// namespace has been found.
#[derive(Clone, Default)]
pub struct PodRoutes {
    inbound: Option<Inbound>,
    localhost: bool,
    /// What serves HTTP, if the pod's annotations set it.
    http: Option<HttpBy>,
    ports: BTreeMap<u16, Routes>,
}

impl PodRoutes {
    /// The routes that `pod` declares, with empty statistics. A port that is both the app's own and the rewrite
    /// port counts as the rewrite port.
    pub fn new(pod: &Pod) -> Self {
        let mut native = BTreeMap::<u16, NativeGroups>::new();
        for probe in &pod.probes {
            native.entry(probe.action.port()).or_default().add(probe);
        }
        let mut ports: BTreeMap<_, _> = native
            .into_iter()
            .map(|(port, groups)| (port, Routes::Native(groups.routes())))
            .collect();
        if let Some(rewritten) = &pod.rewritten {
            let _shadowed = ports.insert(rewritten.port, rewritten_routes(rewritten));
        }
        Self {
            inbound: Some(pod.inbound.clone()),
            localhost: pod.localhost,
            http: pod.http,
            ports,
        }
    }

    /// Keeps every route of `previous` whose declaration is unchanged, with its statistics.
    pub fn carry_over(&mut self, previous: &Self) {
        for (port, routes) in &mut self.ports {
            match (routes, previous.ports.get(port)) {
                (Routes::Native(new), Some(Routes::Native(old))) => carry_over_native(new, old),
                (Routes::Rewritten(new), Some(Routes::Rewritten(old))) => {
                    for (path, route) in new {
                        carry_over_route(Some(route), old.get(path));
                    }
                }
                _ => {}
            }
        }
    }

    /// One endpoint for each distinct address of `addresses` and each port, sorted. `kernel`: see [`path::flags`]; the pod's
    /// annotations take precedence.
    pub fn endpoints(
        &self,
        addresses: &[IpAddr],
        kernel: Option<KernelUse>,
    ) -> Vec<WantedEndpoint> {
        let kernel = kernel.map(|kernel| match (kernel, self.http) {
            (KernelUse::First(_), Some(http)) => KernelUse::First(http),
            _ => kernel,
        });
        let mut addresses: Vec<_> = addresses.iter().map(IpAddr::to_canonical).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let at = |address: IpAddr| {
            self.ports.iter().map(move |(&port, routes)| {
                let address = SocketAddr::new(address, port);
                WantedEndpoint {
                    address,
                    flags: path::flags(routes, kernel, self.localhost),
                    mesh_port: self
                        .inbound
                        .as_ref()
                        .and_then(|mesh| mesh.accepts_at(address)),
                    routes: routes.clone(),
                }
            })
        };
        let endpoints = addresses.into_iter().flat_map(at);
        endpoints.take(MAX_ENDPOINTS).collect()
    }

    /// Every route once, in no order.
    pub fn routes(&self) -> Vec<Arc<Route>> {
        self.ports.values().flat_map(Routes::all).cloned().collect()
    }

    /// The routes on the app's own `port`.
    pub fn native(&self, port: u16) -> Vec<Arc<Route>> {
        match self.ports.get(&port) {
            Some(routes @ Routes::Native(_)) => routes.all().into_iter().cloned().collect(),
            _ => Vec::new(),
        }
    }
}

fn rewritten_routes(rewritten: &Rewritten) -> Routes {
    let mut groups = HashMap::<String, Group>::new();
    for (path, probe) in &rewritten.originals {
        join(&mut groups, path.clone(), probe);
    }
    let routes = groups
        .into_iter()
        .map(|(path, group)| (path, group.route(rewritten.mode)))
        .collect();
    Routes::Rewritten(routes)
}

/// The probes of one port, grouped by protocol, target and whether they are hooks. Their headers may differ,
/// because the app gets the headers of each request.
#[derive(Default)]
struct NativeGroups {
    tcp: Option<Group>,
    https: Option<Group>,
    grpc: Option<Group>,
    http_probes: HashMap<String, Group>,
    http_hooks: HashMap<String, Group>,
}

impl NativeGroups {
    fn add(&mut self, probe: &Probe) {
        match &probe.action {
            Action::Tcp { .. } => join_one(&mut self.tcp, probe),
            Action::Grpc { .. } => join_one(&mut self.grpc, probe),
            Action::Http {
                scheme: Scheme::Https,
                target,
                ..
            } => {
                join_one(&mut self.https, probe);
                if probe.kind.is_hook() {
                    // If a hook is answered in plaintext, the kubelet tries it again without TLS
                    // (kubernetes pkg/kubelet/lifecycle/handlers.go, `isHTTPResponseError`).
                    join(&mut self.http_hooks, target.clone(), &in_plaintext(probe));
                }
            }
            Action::Http {
                scheme: Scheme::Http,
                target,
                ..
            } => {
                let groups = if probe.kind.is_hook() {
                    &mut self.http_hooks
                } else {
                    &mut self.http_probes
                };
                join(groups, target.clone(), probe);
            }
        }
    }

    fn routes(self) -> NativeRoutes {
        let route = |group: Group| group.route(ProbeMode::Transparent);
        let mut http = HashMap::<String, HttpRoute>::new();
        for (target, group) in self.http_probes {
            http.entry(target).or_default().probe = Some(route(group));
        }
        for (target, group) in self.http_hooks {
            http.entry(target).or_default().hook = Some(route(group));
        }
        NativeRoutes {
            tcp: self.tcp.map(route),
            http,
            https: self.https.map(route),
            grpc: self.grpc.map(route),
        }
    }
}

/// The same `httpGet` without TLS.
fn in_plaintext(probe: &Probe) -> Probe {
    let mut probe = probe.clone();
    if let Action::Http { scheme, .. } = &mut probe.action {
        *scheme = Scheme::Http;
    }
    probe
}

/// Probes that share a route.
struct Group {
    first: Probe,
    others: Vec<Probe>,
}

fn join<K: Eq + Hash>(groups: &mut HashMap<K, Group>, key: K, probe: &Probe) {
    groups
        .entry(key)
        .and_modify(|group| group.others.push(probe.clone()))
        .or_insert_with(|| Group::of(probe));
}

fn join_one(group: &mut Option<Group>, probe: &Probe) {
    match group {
        Some(group) => group.others.push(probe.clone()),
        None => *group = Some(Group::of(probe)),
    }
}

impl Group {
    fn of(probe: &Probe) -> Self {
        Self {
            first: probe.clone(),
            others: Vec::new(),
        }
    }

    fn route(self, mode: ProbeMode) -> Arc<Route> {
        let all = || std::iter::once(&self.first).chain(&self.others);
        Arc::new(Route {
            members: all().cloned().collect(),
            timeout: longest(all().map(|probe| probe.timeout)),
            shorter: shorter(all().map(|probe| probe.timeout)),
            agents: all()
                .filter_map(|probe| probe.action.user_agent().map(str::to_owned))
                .collect(),
            stats: RouteStats::new(
                self.others
                    .iter()
                    .any(|other| is_different(&self.first, other)),
            ),
            action: self.first.action,
            mode,
        })
    }
}

/// Whether two probes that share a route may have different results.
fn is_different(one: &Probe, other: &Probe) -> bool {
    matches!(one.action, Action::Grpc { .. }) && one.action != other.action
}

/// The longest timeout. `None` means no timeout, as for a hook, and counts as longer than any timeout.
fn longest(timeouts: impl Iterator<Item = Option<Duration>>) -> Option<Duration> {
    timeouts.reduce(|a, b| Some(a?.max(b?))).unwrap_or_default()
}

/// All distinct timeouts except the longest.
fn shorter(timeouts: impl Iterator<Item = Option<Duration>> + Clone) -> Vec<Duration> {
    let longest = longest(timeouts.clone());
    let shorter: BTreeSet<_> = timeouts
        .filter(|timeout| *timeout != longest)
        .flatten()
        .collect();
    shorter.into_iter().collect()
}

fn carry_over_native(new: &mut NativeRoutes, old: &NativeRoutes) {
    carry_over_route(new.tcp.as_mut(), old.tcp.as_ref());
    carry_over_route(new.https.as_mut(), old.https.as_ref());
    carry_over_route(new.grpc.as_mut(), old.grpc.as_ref());
    for (target, new) in &mut new.http {
        if let Some(old) = old.http.get(target) {
            carry_over_route(new.probe.as_mut(), old.probe.as_ref());
            carry_over_route(new.hook.as_mut(), old.hook.as_ref());
        }
    }
}

fn carry_over_route(new: Option<&mut Arc<Route>>, old: Option<&Arc<Route>>) {
    if let (Some(new), Some(old)) = (new, old)
        && new.members == old.members
        && new.action == old.action
        && new.timeout == old.timeout
        && new.shorter == old.shorter
        && new.agents == old.agents
        && new.mode == old.mode
    {
        *new = Arc::clone(old);
    }
}

#[cfg(test)]
mod tests;
