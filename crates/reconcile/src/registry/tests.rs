//! Endpoints follow their pods, change in the right order, and never serve the wrong pod.

mod obstacles;
mod properties;
mod status;

use std::io;
use std::time::Duration;

use crate::WriteError;
use parking_lot::Mutex;

use super::*;
use model::inbound::Inbound;
use model::{Action, Mesh, Probe, ProbeKind};
use probe::verdict::{Outcome, Reason, Verdict};

/// A call of the registry: adds an endpoint of a namespace, or removes one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Put(SocketAddr, i32),
    Take(SocketAddr),
}

/// A stand-in for the kernel's map, with failures to order.
#[derive(Default)]
struct Kernel {
    map: BTreeMap<SocketAddr, EndpointValue>,
    calls: Vec<Call>,
    /// Whether each of the next calls fails, the last element first.
    failing: Vec<bool>,
    /// The map's capacity.
    capacity: Option<usize>,
    /// Calls that came in the wrong order.
    broken: Vec<String>,
}

impl Kernel {
    fn called(&mut self, call: Call) -> Result<(), WriteError> {
        self.calls.push(call);
        if self.failing.pop() == Some(true) {
            Err(WriteError("no space".into()))
        } else {
            Ok(())
        }
    }
}

/// Writes to a [`Kernel`], and checks the order of changes to kernel and table.
struct Writer {
    kernel: Arc<Mutex<Kernel>>,
    table: Arc<EndpointTable>,
    /// Endpoints whose removal has failed before: they are no longer in the table.
    late: BTreeSet<SocketAddr>,
}

impl EndpointWriter for Writer {
    fn put(&mut self, address: SocketAddr, value: EndpointValue) -> Result<(), WriteError> {
        let mut kernel = self.kernel.lock();
        let dialled = self.table.get(address).map(|endpoint| dialled(&endpoint));
        if dialled != Some(value.netns_id) {
            kernel.broken.push(format!(
                "{address} is added for {}, but dialled in {dialled:?}",
                value.netns_id
            ));
        }
        kernel.called(Call::Put(address, value.netns_id))?;
        let full = kernel.capacity == Some(kernel.map.len());
        if full && !kernel.map.contains_key(&address) {
            return Err(WriteError("no space".into()));
        }
        let _ = kernel.map.insert(address, value);
        let _ = self.late.remove(&address);
        Ok(())
    }

    fn take(&mut self, address: SocketAddr) -> Result<(), WriteError> {
        let mut kernel = self.kernel.lock();
        if self.table.get(address).is_none() && !self.late.contains(&address) {
            kernel.broken.push(format!(
                "{address} was removed from the table before the kernel"
            ));
        }
        let taken = kernel.called(Call::Take(address));
        if taken.is_ok() {
            let _ = kernel.map.remove(&address);
            let _ = self.late.remove(&address);
        } else {
            let _ = self.late.insert(address);
        }
        taken
    }
}

/// Always fails to dial: the error's number is the namespace in which it would dial.
struct DialIn(i32);

impl Dial for DialIn {
    fn socket(&self, _to: SocketAddr) -> io::Result<socket2::Socket> {
        Err(io::Error::from_raw_os_error(self.0))
    }
}

fn dialled(endpoint: &Endpoint) -> i32 {
    match endpoint.pod.dialer.socket(endpoint.address) {
        Ok(_) => panic!("unexpected socket"),
        Err(error) => error.raw_os_error().expect("a namespace's id"),
    }
}

/// A registry, with the kernel and the table to which it writes.
struct Bench {
    registry: Registry<Writer>,
    kernel: Arc<Mutex<Kernel>>,
    table: Arc<EndpointTable>,
}

impl Bench {
    fn new() -> Self {
        let (kernel, table) = <(Arc<Mutex<Kernel>>, Arc<EndpointTable>)>::default();
        let writer = Writer {
            kernel: Arc::clone(&kernel),
            table: Arc::clone(&table),
            late: BTreeSet::new(),
        };
        Self {
            registry: Registry::new(writer, Arc::clone(&table)),
            kernel,
            table,
        }
    }

    fn replace(&mut self, pods: Vec<Pod>) -> Replaced {
        self.registry
            .replace(pods.into_iter().map(Arc::new).collect())
    }

    /// A bench with these pods: pod N in namespace N, with its addresses.
    fn with(pods: &[(u8, &[&str])]) -> Self {
        let mut bench = Self::new();
        let _ = bench.replace(pods.iter().map(|(uid, _)| pod(*uid, 80)).collect());
        for (uid, addresses) in pods {
            bench.place(*uid, *uid, addresses);
        }
        let _ = bench.calls();
        bench
    }

    /// Places a pod as the daemon does: a pod that stays in its namespace keeps its dialer.
    fn place(&mut self, uid: u8, netns: u8, addresses: &[&str]) {
        let mut new = placement(netns, addresses);
        let uid = uid.to_string();
        let entry = self.registry.pods().get(&uid);
        if let Some(old) = entry.and_then(|entry| entry.placement.as_ref())
            && old.netns == new.netns
        {
            new.dialer = Arc::clone(&old.dialer);
        }
        self.registry.place(&uid, Some(new), None);
    }

    /// The calls to the kernel since the last time.
    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.kernel.lock().calls)
    }

    /// The endpoints in the kernel, each with the namespace in which it is gated.
    fn kernel(&self) -> BTreeMap<SocketAddr, i32> {
        let kernel = self.kernel.lock();
        kernel
            .map
            .iter()
            .map(|(address, value)| (*address, value.netns_id))
            .collect()
    }

    /// The endpoints in the table, each with the namespace in which it is dialled.
    fn table(&self) -> BTreeMap<SocketAddr, i32> {
        let all = self.table.all();
        all.iter()
            .map(|endpoint| (endpoint.address, dialled(endpoint)))
            .collect()
    }

    /// Asserts that kernel and table contain exactly these endpoints.
    #[track_caller]
    fn serves(&self, expect: &[(&str, i32)]) {
        let expect: BTreeMap<_, _> = expect.iter().map(|(at, id)| (address(at), *id)).collect();
        assert_eq!(self.kernel(), expect, "in the kernel");
        assert_eq!(self.table(), expect, "in the table");
        assert_eq!(self.registry.installed(), expect.len());
        self.kept_order();
    }

    #[track_caller]
    fn kept_order(&self) {
        assert_eq!(self.kernel.lock().broken, Vec::<String>::new());
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn pod(uid: u8, port: u16) -> Pod {
    Pod {
        id: PodId {
            namespace: "default".to_owned(),
            name: format!("pod-{uid}"),
            uid: uid.to_string(),
        },
        ips: Vec::new(),
        ips_are_old: false,
        mesh: Mesh::Istio,
        inbound: Inbound::by_default(Mesh::Istio),
        localhost: false,
        http: None,
        proxy_uid: None,
        probes: vec![Probe {
            container: "app".to_owned(),
            kind: ProbeKind::Liveness,
            action: Action::Tcp { port },
            timeout: Some(Duration::from_secs(1)),
            schedule: Default::default(),
        }],
        rewritten: None,
        netns: None,
    }
}

fn placement(netns: u8, addresses: &[&str]) -> Placement {
    Placement {
        netns: NetnsId {
            device: 4,
            inode: netns.into(),
        },
        sandbox: netns.into(),
        netns_id: netns.into(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        dialer: Arc::new(DialIn(netns.into())),
        cost: Arc::new(PodCost::new(std::time::Instant::now())),
        kernel: None,
        redirects: Redirects::default(),
    }
}

fn captured() -> Option<Obstacle> {
    Some(Obstacle::Captured("by a rule".to_owned()))
}

#[test]
fn an_endpoint_is_added_to_the_table_before_the_kernel_and_removed_after() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1", "fd00::1"])]);
    bench.serves(&[("10.0.0.1:80", 1), ("[fd00::1]:80", 1)]);
    bench.place(1, 1, &["fd00::1"]);
    assert_eq!(bench.calls(), [Call::Take(address("10.0.0.1:80"))]);
    bench.serves(&[("[fd00::1]:80", 1)]);
    bench.registry.place("1", None, None);
    bench.serves(&[]);
}

#[test]
fn a_port_that_the_pods_own_rules_redirect_is_not_served() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1", "fd00::1"])]);
    let mut redirects = Redirects::default();
    let _new = redirects.set(address("10.0.0.1:80"), Some(address("10.0.0.1:8080")));
    bench.registry.set_redirects("1", redirects.clone());
    bench.serves(&[("[fd00::1]:80", 1)]);
    bench.registry.set_redirects("1", Redirects::default());
    bench.serves(&[("10.0.0.1:80", 1), ("[fd00::1]:80", 1)]);
    // Found before the pod is placed.
    let place = Placement {
        redirects,
        ..placement(1, &["10.0.0.1"])
    };
    bench.registry.place("1", Some(place), None);
    bench.serves(&[]);
}

#[test]
fn a_pod_that_is_not_found_yet_is_not_served() {
    let mut bench = Bench::new();
    let replaced = bench.replace(vec![pod(1, 80)]);
    assert_eq!(replaced.started, [Arc::new(pod(1, 80))]);
    bench.serves(&[]);
    bench.place(2, 2, &["10.0.0.2"]);
    bench.serves(&[]);
}

#[test]
fn an_address_that_moves_to_another_pod_is_removed_first() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"]), (2, &["10.0.0.2"])]);
    // The second pod has the address before the first is known to have lost it.
    bench.place(2, 2, &["10.0.0.1"]);
    bench.serves(&[]);
    let _ = bench.calls();
    bench.place(1, 1, &["10.0.0.3"]);
    bench.serves(&[("10.0.0.1:80", 2), ("10.0.0.3:80", 1)]);

    // One change replaces the old pod by a new one in the same namespace.
    let mut bench = Bench::with(&[(1, &["10.0.0.1"]), (2, &["10.0.0.2"])]);
    bench.place(2, 1, &["10.0.0.1"]);
    bench.serves(&[("10.0.0.1:80", 1)]);
    let _ = bench.calls();
    let _ = bench.replace(vec![pod(2, 80)]);
    let at = address("10.0.0.1:80");
    assert_eq!(bench.calls(), [Call::Take(at), Call::Put(at, 1)]);
    let endpoint = bench.table.get(at).expect("an endpoint");
    assert_eq!(endpoint.pod.id.uid, "2");
}

#[test]
fn a_pod_in_another_namespace_is_dialled_there() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
    bench.place(1, 7, &["10.0.0.1"]);
    let at = address("10.0.0.1:80");
    assert_eq!(bench.calls(), [Call::Take(at), Call::Put(at, 7)]);
    bench.serves(&[("10.0.0.1:80", 7)]);
}

#[test]
fn a_namespace_that_gets_the_id_of_another_changes_the_dialer() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
    let before = bench.table.get(address("10.0.0.1:80")).expect("endpoint");
    let mut elsewhere = placement(1, &["10.0.0.1"]);
    elsewhere.netns.inode = 99;
    bench.registry.place("1", Some(elsewhere), None);
    let after = bench.table.get(address("10.0.0.1:80")).expect("endpoint");
    assert!(!Arc::ptr_eq(&before.pod.dialer, &after.pod.dialer));
    bench.serves(&[("10.0.0.1:80", 1)]);
}

#[test]
fn an_address_in_two_namespaces_is_served_for_neither() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"]), (2, &["10.0.0.1", "10.0.0.2"])]);
    bench.serves(&[("10.0.0.2:80", 2)]);
    // Not even if one of them has an obstacle: it is not known which of them the node reaches.
    bench.registry.set_obstacle("1", captured());
    bench.serves(&[("10.0.0.2:80", 2)]);
    bench.registry.place("1", None, None);
    bench.serves(&[("10.0.0.1:80", 2), ("10.0.0.2:80", 2)]);
}

#[test]
fn of_two_pods_in_one_namespace_the_first_is_served() {
    let mut bench = Bench::with(&[(2, &["10.0.0.1"])]);
    let _ = bench.replace(vec![pod(1, 80), pod(2, 80)]);
    bench.place(1, 2, &["10.0.0.1"]);
    let at = address("10.0.0.1:80");
    assert_eq!(bench.calls(), [Call::Take(at), Call::Put(at, 2)]);
    assert_eq!(bench.table.get(at).expect("endpoint").pod.id.uid, "1");
}

#[test]
fn a_pod_applied_again_keeps_its_endpoints_and_counts() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
    let route = &bench.registry.pods()["1"].routes.routes()[0];
    route.stats.record(
        Outcome::Success,
        Verdict {
            reason: Reason::Healthy,
            status: 200,
            detail: String::new(),
            latency: None,
        },
    );

    let again = bench.replace(vec![pod(1, 80)]);
    assert_eq!(again, Replaced::default());
    assert_eq!(bench.calls(), []);

    let mut changed = pod(1, 80);
    changed.ips = vec![ip("10.0.0.1")];
    changed.probes.extend(pod(1, 81).probes);
    assert_eq!(bench.replace(vec![changed]), Replaced::default());
    let takes = bench
        .calls()
        .iter()
        .any(|call| matches!(call, Call::Take(_)));
    assert!(!takes, "its endpoint was removed for a moment");
    bench.serves(&[("10.0.0.1:80", 1), ("10.0.0.1:81", 1)]);
    let served = bench.table.get(address("10.0.0.1:80")).expect("endpoint");
    let Routes::Native(native) = &served.routes else {
        panic!("not native");
    };
    let tcp = native.tcp.as_ref().expect("tcp");
    assert_eq!(tcp.stats.counts(), (1, 0, 0));
}

#[test]
fn a_pod_whose_mesh_or_namespace_changed_is_searched_for_again() {
    for change in [
        |pod: &mut Pod| pod.mesh = Mesh::Consul,
        |pod: &mut Pod| pod.localhost = true,
        |pod: &mut Pod| pod.proxy_uid = Some(1),
        |pod: &mut Pod| pod.netns = Some("/elsewhere".into()),
    ] {
        let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
        let mut changed = pod(1, 80);
        change(&mut changed);
        let replaced = bench.replace(vec![changed.clone()]);
        assert_eq!(replaced.stopped, [changed.id.clone()]);
        assert_eq!(replaced.started, [Arc::new(changed)]);
        bench.serves(&[]);
    }
}

#[test]
fn pods_placed_before_the_programs_are_loaded_are_served_afterwards() {
    let table = Arc::new(EndpointTable::default());
    let mut registry = Registry::waiting(Arc::clone(&table));
    let _ = registry.replace(vec![Arc::new(pod(1, 80)), Arc::new(pod(2, 80))]);
    registry.hold();
    registry.place("1", Some(placement(1, &["10.0.0.1"])), None);
    registry.release();
    registry.place("2", Some(placement(2, &["10.0.0.2"])), captured());
    assert_eq!(registry.installed(), 0);
    assert!(table.get(address("10.0.0.1:80")).is_none());

    registry.begin(Writer {
        kernel: Arc::default(),
        table: Arc::clone(&table),
        late: BTreeSet::new(),
    });
    assert_eq!(registry.installed(), 1);
    assert!(table.get(address("10.0.0.1:80")).is_some());
}

#[test]
fn a_removed_pod_releases_everything() {
    let mut bench = Bench::new();
    let _ = bench.replace(vec![pod(1, 80)]);
    let placement = placement(1, &["10.0.0.1"]);
    let dialer = Arc::downgrade(&placement.dialer);
    bench.registry.place("1", Some(placement), None);
    let endpoint = bench.table.get(address("10.0.0.1:80")).expect("endpoint");
    let served = Arc::downgrade(&endpoint.pod);
    drop(endpoint);

    let replaced = bench.replace(Vec::new());
    assert_eq!(replaced.stopped, [pod(1, 80).id]);
    bench.serves(&[]);
    assert!(served.upgrade().is_none() && dialer.upgrade().is_none());
}

#[test]
fn a_pod_that_is_lost_releases_its_namespace() {
    let mut bench = Bench::new();
    let _ = bench.replace(vec![pod(1, 80)]);
    let placement = placement(1, &["10.0.0.1"]);
    let dialer = Arc::downgrade(&placement.dialer);
    bench.registry.place("1", Some(placement), None);
    bench
        .registry
        .place("1", None, Some(Obstacle::NoNamespace("gone".to_owned())));
    bench.serves(&[]);
    assert!(dialer.upgrade().is_none());
}

#[test]
fn a_captured_pod_is_not_served_until_its_canary_passes() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
    bench.registry.set_obstacle("1", captured());
    bench.serves(&[]);
    bench.registry.set_obstacle("1", None);
    bench.serves(&[("10.0.0.1:80", 1)]);
}

#[test]
fn an_endpoint_for_which_the_map_is_full_is_tried_again_and_affects_no_other() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"]), (2, &["10.0.0.2"])]);
    bench.kernel.lock().capacity = Some(2);
    let _ = bench.replace(vec![pod(1, 80), pod(2, 80), pod(3, 80)]);
    bench.place(3, 3, &["10.0.0.3"]);
    assert_eq!(bench.registry.failed(), 1);
    bench.serves(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 2)]);

    let _ = bench.replace(vec![pod(1, 80), pod(3, 80)]);
    assert_eq!(bench.registry.failed(), 0);
    bench.serves(&[("10.0.0.1:80", 1), ("10.0.0.3:80", 3)]);
}

#[test]
fn an_endpoint_that_cannot_be_changed_is_removed() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
    bench.kernel.lock().failing = vec![true];
    let mut changed = pod(1, 80);
    changed.ips = vec![ip("10.0.0.1")];
    let _ = bench.replace(vec![changed.clone()]);
    assert_eq!(bench.registry.failed(), 1);
    bench.serves(&[]);
    let _ = bench.replace(vec![changed]);
    bench.serves(&[("10.0.0.1:80", 1)]);
}

#[test]
fn an_endpoint_that_stays_in_the_kernel_is_removed_with_the_next_change() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"])]);
    bench.kernel.lock().failing = vec![true];
    let _ = bench.replace(Vec::new());
    // The handler finds no endpoint, so it relays; nothing keeps the pod's namespace alive.
    assert!(bench.table.is_empty());
    assert_eq!(bench.registry.failed(), 1);
    let _ = bench.replace(Vec::new());
    assert_eq!(bench.registry.failed(), 0);
    bench.serves(&[]);
}

#[test]
fn held_changes_are_applied_together() {
    let mut bench = Bench::with(&[(1, &["10.0.0.1"]), (2, &[])]);
    bench.registry.hold();
    bench.place(1, 1, &["10.0.0.9"]);
    bench.place(2, 2, &["10.0.0.2"]);
    assert_eq!(bench.calls(), []);
    bench.registry.release();
    bench.serves(&[("10.0.0.2:80", 2), ("10.0.0.9:80", 1)]);
    assert_eq!(bench.calls().len(), 3);
}
