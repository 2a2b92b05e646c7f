//! Each kind of advice, and what is just not enough for it.

use super::*;
use crate::fixtures;
use crate::status::ProbeStatus;
use model::state::PodState;

const NOW: u64 = 10 * HOUR_MS;

fn run(ended_before_s: u64, count: u32, every_ms: u64, outcome: Outcome, reason: Reason) -> Run {
    let until_ms = NOW - ended_before_s * 1_000;
    Run {
        since_ms: until_ms - u64::from(count - 1) * every_ms,
        until_ms,
        count,
        outcome,
        reason,
        status: 200,
        latency_us: 3_000,
        p99_us: 0,
    }
}

fn healthy(ended_before_s: u64, count: u32) -> Run {
    run(
        ended_before_s,
        count,
        10_000,
        Outcome::Success,
        Reason::Healthy,
    )
}

fn failed(ended_before_s: u64, count: u32, reason: Reason) -> Run {
    run(ended_before_s, count, 10_000, Outcome::Failure, reason)
}

/// A probe every 10 s with a timeout of 1 s.
fn probe(kind: &str, p99_ms: u64, runs: Vec<Run>) -> ProbeHistory {
    let is_success = |run: &&Run| run.outcome == Outcome::Success;
    ProbeHistory {
        probe: ProbeStatus {
            target: Some("/health".to_owned()),
            timeout_ms: Some(1_000),
            period_ms: Some(10_000),
            failure_threshold: Some(3),
            success: runs
                .iter()
                .filter(is_success)
                .map(|run| u64::from(run.count))
                .sum(),
            ..fixtures::probe(kind, "http", 8080)
        },
        p99_us: (p99_ms > 0).then_some(p99_ms * 1_000),
        runs,
    }
}

fn of(probes: Vec<ProbeHistory>) -> Vec<Advice> {
    advice(&PodHistory {
        namespace: "shop".to_owned(),
        name: "cart-0".to_owned(),
        uid: "u1".to_owned(),
        now_ms: NOW,
        not_served: None,
        state: PodState::default(),
        events: Vec::new(),
        daemon_starts_ms: vec![HOUR_MS],
        probes,
        skipped: Vec::new(),
    })
}

fn about(probes: Vec<ProbeHistory>) -> Vec<String> {
    of(probes).into_iter().map(|one| one.about).collect()
}

#[test]
fn a_healthy_probe_gets_no_advice() {
    assert_eq!(of(vec![probe("liveness", 20, vec![healthy(1, 300)])]), []);
    assert_eq!(text([], None), format!("{NOTHING}\n"));
}

#[test]
fn a_timeout_close_to_what_the_app_needs_gets_a_patch() {
    let close = of(vec![probe("liveness", 940, vec![healthy(1, 300)])]);
    let [one] = &close[..] else {
        panic!("{close:?}");
    };
    assert_eq!(one.about, "timeout");
    assert!(
        one.text.contains("took up to 940 ms") && one.text.contains("allow 2 s"),
        "{one:?}"
    );
    let shown = text([(None, one)], None);
    let patch = "--patch '{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"livenessProbe\":{\"timeoutSeconds\":2},\
                 \"name\":\"app\"}]}}}}'";
    assert!(
        shown.starts_with("shop/cart-0\n  app liveness http:8080/health: "),
        "{shown}"
    );
    assert!(shown.contains(patch), "{shown}");
    assert_eq!(of(vec![probe("liveness", 790, vec![healthy(1, 300)])]), []);
    // A lifecycle hook has no timeout of its own.
    let mut hook = probe("prestop", 30_000, vec![healthy(1, 1)]);
    hook.probe.timeout_ms = None;
    assert_eq!(of(vec![hook]), []);
}

#[test]
fn timeouts_count_for_an_hour() {
    let runs = |before| vec![failed(before, 3, Reason::TimedOut), healthy(1, 10)];
    assert_eq!(
        about(vec![probe("readiness", 20, runs(3_000))]),
        ["timeout"]
    );
    assert_eq!(of(vec![probe("readiness", 20, runs(3_700))]), []);
}

#[test]
fn a_result_that_changes_often_flaps() {
    let flapping = |changes: u64| {
        let runs = (0..=changes).map(|index| match index % 2 {
            0 => healthy(1_000 - index * 20, 1),
            _ => failed(1_000 - index * 20, 1, Reason::HttpStatus),
        });
        about(vec![probe("readiness", 20, runs.collect())])
    };
    assert_eq!(flapping(6), ["flapping"]);
    assert_eq!(flapping(5), [""; 0]);
}

#[test]
fn a_port_on_which_nothing_has_ever_listened_is_named() {
    let refused = || failed(1, 3, Reason::Refused);
    assert_eq!(
        about(vec![probe("readiness", 0, vec![refused()])]),
        ["no-listener"]
    );
    assert_eq!(
        about(vec![probe("readiness", 0, vec![healthy(60, 1), refused()])]),
        [""; 0]
    );
}

#[test]
fn liveness_must_be_more_patient_than_the_same_check_of_readiness() {
    let both = |threshold| {
        let mut liveness = probe("liveness", 20, vec![healthy(1, 5)]);
        liveness.probe.failure_threshold = Some(threshold);
        about(vec![liveness, probe("readiness", 20, vec![healthy(1, 5)])])
    };
    assert_eq!(both(3), ["same-check"]);
    assert_eq!(both(6), [""; 0]);
}

#[test]
fn probes_that_come_late_are_noticed() {
    let every = |ms| {
        let run = run(1, 20, ms, Outcome::Success, Reason::Healthy);
        about(vec![probe("startup", 20, vec![run])])
    };
    assert_eq!(every(12_100), ["late"]);
    assert_eq!(every(11_900), [""; 0]);
}
