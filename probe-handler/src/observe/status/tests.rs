//! Rows of `status` from the handler's table.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::net::TcpSocket;

use super::*;
use crate::check::dial::Dial;
use crate::check::verdict::{Outcome, Reason, Verdict};
use crate::handler::table::{HttpRoute, NativeRoutes, RouteStats, ServedPod};
use crate::pods::model::{Mesh, ProbeKind, Scheme, Way};

struct NoDial;

impl Dial for NoDial {
    fn socket(&self, _to: SocketAddr) -> io::Result<TcpSocket> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn served(name: &str) -> Arc<ServedPod> {
    Arc::new(ServedPod {
        id: PodId {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: "1".to_owned(),
        },
        mesh: Mesh::Istio,
        dialer: Arc::new(NoDial),
        max_in_flight: 1,
        in_flight: AtomicUsize::new(0),
    })
}

fn route(kind: ProbeKind, action: Action) -> Arc<Route> {
    Arc::new(Route {
        members: vec![("app".to_owned(), kind)],
        action,
        timeout: (!kind.is_hook()).then_some(Duration::from_secs(1)),
        way: Way::Transparent,
        stats: RouteStats::default(),
    })
}

fn http(target: &str) -> Action {
    Action::Http {
        scheme: Scheme::Http,
        port: 8080,
        target: target.to_owned(),
        headers: Vec::new(),
    }
}

fn native(route: &Arc<Route>, hook: &Arc<Route>, tcp: &Arc<Route>) -> Routes {
    let both = HttpRoute {
        probe: Some(Arc::clone(route)),
        hook: Some(Arc::clone(hook)),
    };
    Routes::Native(NativeRoutes {
        tcp: Some(Arc::clone(tcp)),
        http: HashMap::from([("/healthz".to_owned(), both)]),
        ..NativeRoutes::default()
    })
}

#[test]
fn a_dual_stack_pod_has_one_row_for_each_route() {
    let pod = served("cart-0");
    let probe = route(ProbeKind::Liveness, http("/healthz"));
    let hook = route(ProbeKind::PreStop, http("/healthz"));
    let tcp = route(ProbeKind::Readiness, Action::Tcp { port: 8080 });
    let endpoints: Vec<_> = ["10.0.0.1:8080", "[fd00::1]:8080"]
        .iter()
        .map(|address| {
            Arc::new(Endpoint {
                address: address.parse().expect("address"),
                pod: Arc::clone(&pod),
                routes: native(&probe, &hook, &tcp),
            })
        })
        .collect();
    let rows = probe_rows(&endpoints, SystemTime::now());
    let rows = &rows[&pod.id];
    let kinds: Vec<_> = rows.iter().map(|row| row.probe.as_str()).collect();
    assert_eq!(kinds, ["liveness", "prestop", "readiness"]);
    assert_eq!(rows[0].target.as_deref(), Some("/healthz"));
    assert_eq!(rows[0].timeout_ms, Some(1000));
    assert_eq!(rows[1].timeout_ms, None);
    assert_eq!(rows[2].target, None);
}

#[test]
fn pods_do_not_share_rows() {
    let action = || Action::Grpc {
        port: 9000,
        service: "cart".to_owned(),
    };
    let endpoints: Vec<_> = ["a", "b"]
        .iter()
        .zip(["10.0.0.1:15020", "10.0.0.2:15020"])
        .map(|(name, address)| {
            let path = "/app-health/app/livez".to_owned();
            let original = route(ProbeKind::Liveness, action());
            Arc::new(Endpoint {
                address: address.parse().expect("address"),
                pod: served(name),
                routes: Routes::Rewritten(HashMap::from([(path, original)])),
            })
        })
        .collect();
    let rows = probe_rows(&endpoints, SystemTime::now());
    assert_eq!(rows.len(), 2);
    for rows in rows.values() {
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].service.as_deref(), Some("cart"));
    }
}

#[test]
fn the_last_verdict_of_a_hook_is_judged_as_a_hook() {
    let hook = route(ProbeKind::PreStop, http("/stop"));
    let verdict = Verdict {
        reason: Reason::HttpStatus,
        status: 503,
        detail: "the app answered 503".to_owned(),
        latency: Duration::from_micros(1500),
    };
    hook.stats.record(Outcome::Success, verdict);
    // A clock that was set back makes the age 0, no error.
    let row = ProbeStatus::new(&hook, SystemTime::UNIX_EPOCH);
    let last = row.last.expect("a verdict");
    assert_eq!((last.outcome.as_str(), last.status), ("success", 503));
    assert_eq!(
        (last.reason.as_str(), last.latency_us),
        ("http_status", 1500)
    );
    assert_eq!(last.age_ms, 0);
    assert_eq!((row.success, row.failure, row.unknown), (1, 0, 0));
}

#[test]
fn counters_have_their_names() {
    let named = counters([1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(named.len(), 7);
    assert_eq!((named["seen"], named["refused"], named["error"]), (1, 3, 7));
}
