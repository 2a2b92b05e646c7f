//! Rows of `status` from the handler's table.

use std::time::Duration;

use super::*;
use model::{ProbeKind, ProbeMode, Scheme};
use probe::verdict::{Outcome, Reason, Verdict};
use serve::metrics::fixtures::member;
use serve::table::RouteStats;

fn route(kind: ProbeKind, action: Action) -> Arc<Route> {
    Arc::new(Route {
        members: vec![member(kind, action.clone())],
        action,
        timeout: (!kind.is_hook()).then_some(Duration::from_secs(1)),
        shorter: Vec::new(),
        mode: ProbeMode::Transparent,
        agents: Vec::new(),
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

#[test]
fn rows_are_sorted_by_container_and_probe_and_show_the_check() {
    let routes = [
        route(ProbeKind::Readiness, Action::Tcp { port: 8080 }),
        route(ProbeKind::PreStop, http("/healthz")),
        route(ProbeKind::Liveness, http("/healthz")),
        route(
            ProbeKind::Startup,
            Action::Grpc {
                port: 9000,
                service: "cart".to_owned(),
            },
        ),
    ];
    let rows = probe_rows(&routes, Moment::now());
    let kinds: Vec<_> = rows.iter().map(|row| row.probe.as_str()).collect();
    assert_eq!(kinds, ["liveness", "prestop", "readiness", "startup"]);
    assert_eq!(rows[0].target.as_deref(), Some("/healthz"));
    assert_eq!(rows[0].timeout_ms, Some(1000));
    assert_eq!(rows[1].timeout_ms, None);
    assert_eq!(rows[2].target, None);
    assert_eq!(rows[3].service.as_deref(), Some("cart"));
}

#[test]
fn the_last_verdict_of_a_hook_follows_the_rules_of_hooks() {
    let hook = route(ProbeKind::PreStop, http("/stop"));
    let verdict = Verdict {
        reason: Reason::HttpStatus,
        status: 503,
        detail: "the app answered 503".to_owned(),
        latency: Some(Duration::from_micros(1500)),
    };
    let _ = hook.stats.record(Outcome::Success, verdict);
    let mut later = Moment::now();
    later.instant += Duration::from_secs(2);
    let row = probe_row(&hook, &hook.members[0], later);
    let last = row.last.expect("a verdict");
    assert_eq!((last.outcome.as_str(), last.status), ("success", Some(503)));
    assert_eq!(
        (last.reason.as_str(), last.latency_us),
        ("http_status", Some(1500))
    );
    assert!((2000..60_000).contains(&last.age_ms), "{}", last.age_ms);
    assert_eq!((row.success, row.failure, row.unknown), (1, 0, 0));
}

#[test]
fn each_target_of_a_shared_check_has_its_own_row() {
    let https = |target: &str| Action::Http {
        scheme: Scheme::Https,
        port: 8443,
        target: target.to_owned(),
        headers: Vec::new(),
    };
    let mut shared = Route {
        members: vec![member(ProbeKind::Liveness, https("/live"))],
        action: https("/live"),
        timeout: None,
        shorter: Vec::new(),
        mode: ProbeMode::Transparent,
        agents: Vec::new(),
        stats: RouteStats::default(),
    };
    shared
        .members
        .push(member(ProbeKind::Readiness, https("/ready")));
    let rows = probe_rows(&[Arc::new(shared)], Moment::now());
    let seen: Vec<_> = rows
        .iter()
        .map(|row| (row.probe.as_str(), row.target.as_deref(), row.shared_with))
        .collect();
    assert_eq!(
        seen,
        [
            ("liveness", Some("/live"), 1),
            ("readiness", Some("/ready"), 1)
        ]
    );
}

#[test]
fn only_an_answer_over_http_has_a_status() {
    let verdict = |reason, status| Verdict {
        reason,
        status,
        detail: String::new(),
        latency: None,
    };
    let http = http("/");
    let tcp = Action::Tcp { port: 80 };
    for (action, reason, status, expected) in [
        (&http, Reason::HttpStatus, 503, Some(503)),
        (&http, Reason::Healthy, 204, Some(204)),
        (&http, Reason::Refused, 500, None),
        (&http, Reason::TimedOut, 504, None),
        (&tcp, Reason::Refused, 500, None),
        (&tcp, Reason::Healthy, 200, None),
    ] {
        let seen = http_status(action, &verdict(reason, status));
        assert_eq!(seen, expected, "{action:?} {reason:?}");
    }
}

#[test]
fn counters_have_their_names() {
    let named = counters([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    assert_eq!(named.len(), 11);
    assert_eq!(
        (named["seen"], named["no_heartbeat"], named["exempt"]),
        (1, 8, 10)
    );
}
