//! Tests of grouping, carrying over, and addresses.

use std::time::Duration;

use proptest::prelude::*;

use probe_handler_common::endpoint::{GATE, REDIRECT};

use super::*;
use model::inbound::Inbound;
use model::{Mesh, PodId, ProbeKind, Schedule};
use probe::verdict::{Outcome, Reason, Verdict};

fn pod(probes: Vec<Probe>, rewritten: Option<Rewritten>) -> Pod {
    Pod {
        id: PodId {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: "1".to_owned(),
        },
        ips: Vec::new(),
        ips_are_old: false,
        mesh: Mesh::Istio,
        inbound: Inbound::by_default(Mesh::Istio),
        localhost: false,
        http: None,
        proxy_uid: None,
        probes,
        rewritten,
        netns: None,
    }
}

fn probe(container: &str, kind: ProbeKind, action: Action, seconds: u64) -> Probe {
    Probe {
        container: container.to_owned(),
        kind,
        action,
        timeout: (!kind.is_hook()).then(|| Duration::from_secs(seconds)),
        schedule: Schedule::default(),
    }
}

fn http(port: u16, target: &str) -> Action {
    Action::Http {
        scheme: Scheme::Http,
        port,
        target: target.to_owned(),
        headers: Vec::new(),
    }
}

fn native(routes: &PodRoutes, port: u16) -> &NativeRoutes {
    match &routes.ports[&port] {
        Routes::Native(native) => native,
        Routes::Rewritten(_) => panic!("port {port} is the rewrite port"),
    }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn see_success(route: &Route) {
    route.stats.record(
        Outcome::Success,
        Verdict {
            reason: Reason::Healthy,
            status: 200,
            detail: String::new(),
            latency: None,
        },
    );
}

#[test]
fn probes_of_one_target_share_a_route_with_the_longest_timeout() {
    let routes = PodRoutes::new(&pod(
        vec![
            probe("web", ProbeKind::Liveness, http(80, "/h"), 1),
            probe("web", ProbeKind::Readiness, http(80, "/h"), 7),
            probe("web", ProbeKind::Startup, http(80, "/h?x"), 2),
        ],
        None,
    ));
    let native = native(&routes, 80);
    let shared = native.http["/h"].probe.as_ref().unwrap();
    let kinds: Vec<_> = shared.members.iter().map(|member| member.kind).collect();
    assert_eq!(kinds, [ProbeKind::Liveness, ProbeKind::Readiness]);
    assert_eq!(shared.timeout, Some(Duration::from_secs(7)));
    assert_eq!(shared.mode, ProbeMode::Transparent);
    assert_eq!(native.http.len(), 2);
}

#[test]
fn a_hook_and_a_probe_of_one_target_have_separate_routes() {
    let routes = PodRoutes::new(&pod(
        vec![
            probe("web", ProbeKind::Liveness, http(80, "/h"), 1),
            probe("web", ProbeKind::PreStop, http(80, "/h"), 1),
        ],
        None,
    ));
    let route = &native(&routes, 80).http["/h"];
    assert!(!route.probe.as_ref().unwrap().is_hook());
    let hook = route.hook.as_ref().unwrap();
    assert!(hook.is_hook());
    assert_eq!(hook.timeout, None);
}

#[test]
fn each_protocol_on_a_port_has_its_own_route() {
    let https = Action::Http {
        scheme: Scheme::Https,
        port: 80,
        target: "/s".to_owned(),
        headers: Vec::new(),
    };
    let grpc = Action::Grpc {
        port: 80,
        service: String::new(),
    };
    let routes = PodRoutes::new(&pod(
        vec![
            probe("a", ProbeKind::Liveness, Action::Tcp { port: 80 }, 1),
            probe("b", ProbeKind::Liveness, Action::Tcp { port: 80 }, 3),
            probe("a", ProbeKind::Readiness, https.clone(), 1),
            probe("a", ProbeKind::PostStart, https, 1),
            probe("a", ProbeKind::Startup, grpc, 4),
        ],
        None,
    ));
    let native = native(&routes, 80);
    let tcp = native.tcp.as_ref().unwrap();
    assert_eq!(
        (tcp.members.len(), tcp.timeout),
        (2, Some(Duration::from_secs(3)))
    );
    // A hook has no timeout, which counts as the longest.
    let https = native.https.as_ref().unwrap();
    assert_eq!((https.members.len(), https.timeout), (2, None));
    let grpc = native.grpc.as_ref().unwrap();
    assert_eq!(
        (grpc.members.len(), grpc.timeout),
        (1, Some(Duration::from_secs(4)))
    );
    // The kubelet tries an HTTPS hook again in plaintext, but not a probe.
    let fallback = &native.http["/s"];
    assert!(native.http.len() == 1 && fallback.probe.is_none());
    let fallback = fallback.hook.as_ref().unwrap();
    assert_eq!(fallback.members.len(), 1);
    assert_eq!(fallback.members[0].kind, ProbeKind::PostStart);
    assert_eq!(fallback.action.protocol(), "http");
}

#[test]
fn native_ports_are_gated_and_the_rewrite_port_is_not() {
    let rewritten = Rewritten {
        mode: ProbeMode::Takeover,
        port: 15020,
        originals: vec![(
            "/app-health/web/livez".to_owned(),
            probe("web", ProbeKind::Liveness, http(80, "/h"), 1),
        )],
    };
    let ready = probe("web", ProbeKind::Readiness, Action::Tcp { port: 81 }, 1);
    let routes = PodRoutes::new(&pod(vec![ready], Some(rewritten)));
    let endpoints = routes.endpoints(&ips(&["10.0.0.1"]), None);
    let seen: Vec<_> = endpoints
        .iter()
        .map(|endpoint| (endpoint.address.port(), endpoint.flags, endpoint.mesh_port))
        .collect();
    assert_eq!(
        seen,
        [
            (81, GATE | REDIRECT, Some(15006)),
            (15020, REDIRECT, Some(15006))
        ]
    );
    let Routes::Rewritten(by_path) = &endpoints[1].routes else {
        panic!("15020 is native");
    };
    let route = &by_path["/app-health/web/livez"];
    assert_eq!((route.mode, route.action.port()), (ProbeMode::Takeover, 80));
}

#[test]
fn the_rewrite_port_wins_over_a_native_one() {
    let rewritten = Rewritten {
        mode: ProbeMode::Rewrite,
        port: 80,
        originals: vec![(
            "/app-health/web/livez".to_owned(),
            probe("web", ProbeKind::Liveness, http(8080, "/h"), 1),
        )],
    };
    let own = probe("web", ProbeKind::Readiness, http(80, "/own"), 1);
    let endpoints =
        PodRoutes::new(&pod(vec![own], Some(rewritten))).endpoints(&ips(&["10.0.0.1"]), None);
    assert_eq!(endpoints.len(), 1);
    assert!(matches!(endpoints[0].routes, Routes::Rewritten(_)));
}

#[test]
fn all_addresses_of_a_pod_share_its_routes() {
    let routes = PodRoutes::new(&pod(
        vec![probe("web", ProbeKind::Liveness, http(80, "/h"), 1)],
        None,
    ));
    let endpoints = routes.endpoints(&ips(&["fd00::1", "10.0.0.1", "::ffff:10.0.0.1"]), None);
    let addresses: Vec<_> = endpoints.iter().map(|e| e.address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.1:80", "[fd00::1]:80"]);
    see_success(&routes.routes()[0]);
    for endpoint in &endpoints {
        let seen = endpoint.routes.all();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].stats.counts(), (1, 0, 0), "{}", endpoint.address);
    }
}

#[test]
fn a_pod_without_probes_or_addresses_has_no_endpoints() {
    let none = PodRoutes::new(&pod(Vec::new(), None));
    assert!(none.endpoints(&ips(&["10.0.0.1"]), None).is_empty());
    let one = PodRoutes::new(&pod(
        vec![probe("web", ProbeKind::Liveness, http(80, "/h"), 1)],
        None,
    ));
    assert!(one.endpoints(&[], None).is_empty());
}

#[test]
fn a_route_with_a_changed_declaration_starts_with_empty_statistics() {
    let live = |target, seconds| {
        PodRoutes::new(&pod(
            vec![probe("web", ProbeKind::Liveness, http(80, target), seconds)],
            None,
        ))
    };
    let old = live("/h", 1);
    see_success(&old.routes()[0]);
    for (target, seconds, kept) in [("/h", 1, 1), ("/h", 2, 0), ("/i", 1, 0)] {
        let mut new = live(target, seconds);
        new.carry_over(&old);
        assert_eq!(new.routes()[0].stats.counts().0, kept, "{target} {seconds}");
    }
}

#[test]
fn a_changed_user_agent_of_a_second_member_replaces_the_route() {
    let declared = |agent: &str| {
        let mut readiness = http(80, "/h");
        let Action::Http { headers, .. } = &mut readiness else {
            unreachable!("an HTTP probe");
        };
        headers.push(("User-Agent".to_owned(), agent.to_owned()));
        PodRoutes::new(&pod(
            vec![
                probe("web", ProbeKind::Liveness, http(80, "/h"), 1),
                probe("web", ProbeKind::Readiness, readiness, 1),
            ],
            None,
        ))
    };
    let old = declared("before");
    see_success(&old.routes()[0]);
    for (agent, kept) in [("before", 1), ("after", 0)] {
        let mut new = declared(agent);
        new.carry_over(&old);
        let route = &new.routes()[0];
        assert_eq!(route.agents, [agent]);
        assert_eq!(route.stats.counts().0, kept, "{agent}");
    }
}

const KINDS: [ProbeKind; 5] = [
    ProbeKind::Liveness,
    ProbeKind::Readiness,
    ProbeKind::Startup,
    ProbeKind::PostStart,
    ProbeKind::PreStop,
];

fn any_probe() -> impl Strategy<Value = Probe> {
    let action = (1_u16..4, 0..3_usize, 0..4_u8).prop_map(|(port, target, protocol)| {
        let target = ["/", "/a", "/b"][target].to_owned();
        match protocol {
            0 => Action::Tcp { port },
            1 => Action::Grpc {
                port,
                service: target,
            },
            n => Action::Http {
                scheme: if n == 2 { Scheme::Http } else { Scheme::Https },
                port,
                target,
                headers: Vec::new(),
            },
        }
    });
    (0..3_u8, 0..KINDS.len(), action, 1..5_u64)
        .prop_map(|(c, kind, action, s)| probe(&format!("c{c}"), KINDS[kind], action, s))
}

fn any_pod() -> impl Strategy<Value = Pod> {
    let originals = prop::collection::vec(any_probe(), 0..6).prop_map(|probes| {
        probes
            .into_iter()
            .map(|probe| {
                (
                    format!("/app-health/{}/{}", probe.container, probe.kind.name()),
                    probe,
                )
            })
            .collect()
    });
    (
        prop::collection::vec(any_probe(), 0..12),
        prop::option::of(originals),
    )
        .prop_map(|(probes, originals)| {
            let rewritten = originals.map(|originals| Rewritten {
                mode: ProbeMode::Takeover,
                port: 15020,
                originals,
            });
            pod(probes, rewritten)
        })
}

/// Every member of every route, with port and protocol, sorted.
fn members(routes: &PodRoutes) -> Vec<(String, ProbeKind, u16, &'static str)> {
    let mut all: Vec<_> = routes
        .routes()
        .iter()
        .flat_map(|route| {
            let (port, protocol) = (route.action.port(), route.action.protocol());
            route
                .members
                .iter()
                .map(move |member| (member.container.clone(), member.kind, port, protocol))
                .collect::<Vec<_>>()
        })
        .collect();
    all.sort_unstable();
    all
}

proptest! {
    #[test]
    fn grouping_loses_no_probe(mut pod in any_pod()) {
        pod.rewritten = None;
        let mut declared = Vec::new();
        for p in &pod.probes {
            let protocol = p.action.protocol();
            declared.push((p.container.clone(), p.kind, p.action.port(), protocol));
            // The kubelet may try such a hook again in plaintext.
            if p.kind.is_hook() && protocol == "https" {
                declared.push((p.container.clone(), p.kind, p.action.port(), "http"));
            }
        }
        declared.sort_unstable();
        let routes = PodRoutes::new(&pod);
        prop_assert_eq!(members(&routes), declared);
        for probe in &pod.probes {
            let slot = native(&routes, probe.action.port());
            let route = match &probe.action {
                Action::Tcp { .. } => slot.tcp.as_ref(),
                Action::Grpc { .. } => slot.grpc.as_ref(),
                Action::Http { scheme: Scheme::Https, .. } => slot.https.as_ref(),
                Action::Http { target, .. } if probe.kind.is_hook() => slot.http[target].hook.as_ref(),
                Action::Http { target, .. } => slot.http[target].probe.as_ref(),
            };
            let route = route.expect("the probe has a route");
            prop_assert!(route.members.contains(probe));
            // No member has a longer timeout than its route.
            prop_assert!(route.timeout.is_none() || probe.timeout <= route.timeout);
        }
    }

    #[test]
    fn every_rewritten_path_has_a_route(pod in any_pod()) {
        let routes = PodRoutes::new(&pod);
        if let Some(rewritten) = &pod.rewritten {
            let Routes::Rewritten(by_path) = &routes.ports[&rewritten.port] else {
                return Err(TestCaseError::fail("native"));
            };
            for (path, probe) in &rewritten.originals {
                prop_assert!(by_path[path].members.contains(probe));
            }
        }
    }

    #[test]
    fn carrying_over_keeps_counts_of_the_same_declaration(before in any_pod(), after in any_pod()) {
        let old = PodRoutes::new(&before);
        for route in old.routes() {
            see_success(&route);
        }
        let mut same = PodRoutes::new(&before);
        same.carry_over(&old);
        for route in same.routes() {
            prop_assert_eq!(route.stats.counts(), (1, 0, 0));
        }
        // Carrying over never changes what the new pod declares.
        let fresh = members(&PodRoutes::new(&after));
        let mut other = PodRoutes::new(&after);
        other.carry_over(&old);
        prop_assert_eq!(members(&other), fresh);
    }
}
