//! Property tests: after any sequence of events, exactly the right endpoints exist.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// An event for a registry with pods 0 to 3 in namespaces 1 to 3.
#[derive(Clone, Debug)]
enum Event {
    /// The pods, each with its port, its mesh and the addresses in its status.
    Replace(BTreeMap<u8, (u16, Mesh, Vec<&'static str>)>),
    /// A pod's namespace and addresses.
    Place(u8, Option<(u8, Vec<&'static str>)>, bool),
    Obstacle(u8, bool),
}

fn event() -> impl Strategy<Value = Event> {
    let mesh = prop_oneof![4 => Just(Mesh::Istio), 1 => Just(Mesh::Linkerd)];
    let addresses = || prop::sample::subsequence(vec!["10.0.0.1", "10.0.0.2", "fd00::1"], 0..=3);
    // The status of most pods contains none or all of the addresses: otherwise hardly any pod would be served.
    let ips = prop_oneof![
        2 => Just(Vec::new()),
        1 => Just(vec!["10.0.0.1", "10.0.0.2", "fd00::1"]),
        1 => addresses(),
    ];
    let pods = prop::collection::btree_map(0..4_u8, (80..82_u16, mesh, ips), 0..=4);
    prop_oneof![
        2 => pods.prop_map(Event::Replace),
        5 => (0..4_u8, prop::option::weighted(0.8, (1..4_u8, addresses())), prop::bool::weighted(0.2))
            .prop_map(|(uid, place, captured)| Event::Place(uid, place, captured)),
        1 => (0..4_u8, any::<bool>()).prop_map(|(uid, captured)| Event::Obstacle(uid, captured)),
    ]
}

fn happen(bench: &mut Bench, event: Event) {
    let obstacle = |is: bool| if is { captured() } else { None };
    match event {
        Event::Replace(pods) => {
            let pods = pods.into_iter().map(|(uid, (port, mesh, ips))| Pod {
                mesh,
                ips: ips.into_iter().map(ip).collect(),
                ..pod(uid, port)
            });
            let _ = bench.replace(pods.collect());
        }
        Event::Place(uid, place, is_captured) => {
            let place = place.map(|(netns, addresses)| placement(netns, &addresses));
            let uid = uid.to_string();
            bench.registry.place(&uid, place, obstacle(is_captured));
        }
        Event::Obstacle(uid, is) => bench.registry.set_obstacle(&uid.to_string(), obstacle(is)),
    }
}

/// Everything that is visible of a registry's endpoints.
fn seen(bench: &Bench) -> BTreeMap<SocketAddr, (EndpointValue, PodId, i32, usize)> {
    let kernel = bench.kernel.lock();
    let all = bench.table.all();
    all.iter()
        .filter_map(|endpoint| {
            let value = *kernel.map.get(&endpoint.address)?;
            let Routes::Native(native) = &endpoint.routes else {
                return None;
            };
            let routes = usize::from(native.tcp.is_some()) + native.http.len();
            let seen = (value, endpoint.pod.id.clone(), dialled(endpoint), routes);
            Some((endpoint.address, seen))
        })
        .collect()
}

proptest! {
    /// Endpoints depend only on the last state, not on earlier events or failures in the kernel. The addresses in a
    /// status certainly count once they change; until then they may be those of the old sandbox.
    #[test]
    fn endpoints_depend_only_on_the_last_state(
        events in prop::collection::vec((event(), prop::collection::vec(prop::bool::weighted(0.2), 0..4)), 0..30),
    ) {
        let mut bench = Bench::new();
        for (event, failing) in events {
            bench.kernel.lock().failing = failing;
            happen(&mut bench, event);
            let table = bench.table();
            for (address, netns) in bench.kernel() {
                // An endpoint that could not be removed is not in the table; all others are dialled where they are gated.
                prop_assert!(table.get(&address).is_none_or(|dialled| *dialled == netns));
            }
            prop_assert!(table.keys().all(|address| bench.kernel().contains_key(address)));
        }
        bench.kernel.lock().failing = Vec::new();
        let last: Vec<Pod> =
            bench.registry.pods().values().map(|entry| Pod::clone(&entry.pod)).collect();
        prop_assert_eq!(bench.replace(last.clone()), Replaced::default());
        let with_new_status = |mut pod: Pod| {
            if !pod.ips.is_empty() {
                pod.ips.push(ip("10.0.0.9"));
            }
            pod
        };
        let last: Vec<Pod> = last.into_iter().map(with_new_status).collect();
        prop_assert_eq!(bench.replace(last.clone()), Replaced::default());

        let mut fresh = Bench::new();
        let _ = fresh.replace(last.clone());
        for (uid, entry) in bench.registry.pods() {
            fresh.registry.place(uid, entry.placement.clone(), entry.obstacle.clone());
        }
        prop_assert_eq!(seen(&bench), seen(&fresh));
        for (address, (_, id, ..)) in seen(&fresh) {
            let pod = last.iter().find(|pod| pod.id == id).expect("its pod");
            prop_assert!(pod.ips.is_empty() || pod.ips.contains(&address.ip()), "{address} of {pod:?}");
        }
        for bench in [&bench, &fresh] {
            prop_assert_eq!(bench.kernel(), bench.table());
            prop_assert_eq!(bench.registry.installed(), bench.table().len());
            prop_assert_eq!(bench.registry.failed(), 0);
            prop_assert_eq!(&bench.kernel.lock().broken, &Vec::<String>::new());
        }
    }
}
