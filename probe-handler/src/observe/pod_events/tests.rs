//! Which Events follow from a state and a changed verdict.

use super::*;
use model::ProbeKind;
use pods::skipped::{SkipReason, SkippedProbe};
use pods::state::PodState;
use serde_json::{Value, from_value, json};
use serve::metrics::fixtures::member;
use status_view::observed::{ComparedProbe, ComparedResult};
use status_view::status::{CanaryState, NetnsStatus};

fn flip(passes: bool, reason: Reason, status: u16) -> PodEvent {
    let action = Action::Http {
        target: "/ready".to_owned(),
        port: 8080,
        scheme: model::Scheme::Http,
        headers: Vec::new(),
    };
    of_flip(Flip {
        pod: id("u"),
        probe: member(ProbeKind::Readiness, action),
        passes,
        verdict: Verdict {
            reason,
            status,
            detail: "nothing listens".to_owned(),
            latency: None,
        },
        at_ms: 7,
    })
}

fn id(uid: &str) -> PodId {
    PodId {
        namespace: "shop".to_owned(),
        name: "cart".to_owned(),
        uid: uid.to_owned(),
    }
}

/// A pod that is served.
fn pod(name: &str) -> PodStatus {
    let pod = json!({"namespace": "shop", "name": name, "uid": "u", "mesh": "istio", "addresses": ["10.0.0.1"],
        "netns": {"known": {"inode": 1, "nsid": 1}}, "canary": {"state": "passed", "detail": "", "checked_age_ms": 1},
        "skipped": [], "probes": []});
    from_value(pod).expect("a pod")
}

fn state(pods: Vec<PodStatus>) -> Status {
    let none: [Value; 0] = [];
    let status = json!({"version": "", "pid": 1, "uptime_seconds": 1, "state": "serving", "pending": none,
        "kubelet": {"names": none, "pid": null, "cgroup": null, "attached": true, "attached_age_ms": null,
            "process_filter": null, "shared_with": 0},
        "hooks": none, "refusal": "ECONNREFUSED", "handler": none, "counters": {},
        "source": {"kind": "kube", "problems": none}, "pods": none});
    Status {
        pods,
        ..from_value(status).expect("a state")
    }
}

fn selected(not_served: Option<NotServed>, skipped: Vec<SkippedProbe>) -> Arc<SelectedPod> {
    Arc::new(SelectedPod {
        id: id("u"),
        pod: None,
        observed: None,
        not_served,
        skipped,
        warnings: Vec::new(),
        mesh_runs: None,
        state: PodState::default(),
    })
}

/// Reason and message of each Event.
fn told(events: &[PodEvent]) -> Vec<(&'static str, &str)> {
    events
        .iter()
        .map(|event| (event.reason, event.message.as_str()))
        .collect()
}

#[test]
fn a_changed_verdict_names_the_probe_and_the_true_reason() {
    let failed = flip(false, Reason::HttpStatus, 503);
    assert_eq!(
        told(&[failed]),
        [(PROBE_FAILED, "readiness http:8080/ready: HTTP 503")]
    );
    let refused = flip(false, Reason::Refused, 500);
    assert_eq!(
        refused.message,
        "readiness http:8080/ready: nothing listens (refused)"
    );
    let recovered = flip(true, Reason::Healthy, 200);
    assert_eq!(
        (recovered.severity, recovered.reason),
        (Severity::Normal, PROBE_RECOVERED)
    );
}

#[test]
fn a_pod_that_stays_unserved_is_reported_once_and_when_it_is_served() {
    let lost = || PodStatus {
        netns: NetnsStatus::Pending("no cgroup".to_owned()),
        ..pod("cart")
    };
    let mut findings = Findings::default();
    assert!(findings.update(&state(vec![lost()]), &[], 0).is_empty());
    assert!(
        findings.update(&state(vec![lost()]), &[], 9_000).is_empty(),
        "it may be starting"
    );
    let events = findings.update(&state(vec![lost()]), &[], 10_000);
    assert_eq!(
        told(&events),
        [(
            NOT_SERVED,
            "its probes go through the mesh: no network namespace yet: no cgroup"
        )]
    );
    assert!(
        findings
            .update(&state(vec![lost()]), &[], 20_000)
            .is_empty()
    );
    let events = findings.update(&state(vec![pod("cart")]), &[], 21_000);
    assert_eq!(told(&events), [(SERVED, "the pod's probes are served")]);
}

#[test]
fn a_pod_that_is_deleted_while_it_is_not_served_is_not_reported_as_served() {
    let mut failed = pod("cart");
    failed.canary.state = CanaryState::Failed;
    let mut findings = Findings::default();
    let _first = findings.update(&state(vec![failed.clone()]), &[], 0);
    assert_eq!(findings.update(&state(vec![failed]), &[], 10_000).len(), 1);
    assert!(findings.update(&state(Vec::new()), &[], 11_000).is_empty());
}

#[test]
fn a_mistake_in_a_probe_is_reported_at_once_and_what_the_operator_wants_is_not() {
    let skipped = |why| SkippedProbe {
        container: "app".to_owned(),
        kind: ProbeKind::Liveness,
        why,
    };
    let mistake = || skipped(SkipReason::TcpHook);
    let mut findings = Findings::default();
    let events = findings.update(&state(Vec::new()), &[selected(None, vec![mistake()])], 0);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].reason, NOT_SERVED);
    assert!(events[0].message.starts_with("liveness: "), "{events:?}");
    for wanted in [
        NotServed::Off,
        NotServed::OutOfScope,
        NotServed::HostNetwork,
    ] {
        let parsed = selected(Some(wanted), vec![mistake()]);
        let events = Findings::default().update(&state(Vec::new()), &[parsed], 0);
        assert!(events.is_empty(), "{wanted}: {events:?}");
    }
    let valid = selected(None, vec![skipped(SkipReason::Exec)]);
    assert!(
        Findings::default()
            .update(&state(Vec::new()), &[valid], 0)
            .is_empty()
    );
}

#[test]
fn a_closed_port_that_the_mesh_accepts_is_reported_of_an_observed_pod() {
    let compared = |check: &str, change: &str, reason: &str| ComparedProbe {
        container: "app".to_owned(),
        probe: "readiness".to_owned(),
        mode: "transparent".to_owned(),
        check: check.to_owned(),
        change: Some(change.to_owned()),
        consequence: Some("would be unready".to_owned()),
        now: None,
        then: Some(ComparedResult {
            result: "failure".to_owned(),
            reason: reason.to_owned(),
            detail: String::new(),
        }),
        age_ms: None,
        compared: 1,
        cured: 0,
        exposed: 1,
    };
    let status = Status {
        observed: vec![ObservedStatus {
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            trouble: None,
            probes: vec![
                compared("tcp:5433", "exposed", "refused"),
                compared("http:80/", "exposed", "http_status"),
                compared("tcp:5432", "none", "refused"),
            ],
        }],
        ..state(Vec::new())
    };
    let parsed = [selected(Some(NotServed::Observed), Vec::new())];
    let mut findings = Findings::default();
    let events = findings.update(&status, &parsed, 0);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].reason, HIDDEN);
    assert!(
        events[0]
            .message
            .starts_with("readiness tcp:5433 passes because the mesh"),
        "{events:?}"
    );
    assert!(findings.update(&status, &parsed, 5_000).is_empty());
}
