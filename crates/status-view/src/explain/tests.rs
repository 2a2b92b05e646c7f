//! The sentence for each kind of history.

use super::*;
use crate::fixtures;
use crate::status::ProbeStatus;
use model::state::{ContainerState, Ended, PodState};

/// 2026-11-30T03:12:40Z.
const RESTART: u64 = 1_796_008_360_000;

fn probe(kind: &str, runs: Vec<Run>) -> ProbeHistory {
    ProbeHistory {
        probe: ProbeStatus {
            target: Some("/health".to_owned()),
            ..fixtures::probe(kind, "http", 8080)
        },
        p99_us: None,
        runs,
    }
}

/// `count` results, one each 10 s, the first one this many seconds before the restart.
fn run(before: i64, count: u32, outcome: Outcome, reason: Reason, status: u16) -> Run {
    let since_ms = RESTART.saturating_add_signed(-before * 1_000);
    Run {
        since_ms,
        until_ms: since_ms + u64::from(count - 1) * 10_000,
        count,
        outcome,
        reason,
        status,
        latency_us: 3_000,
        p99_us: 940_000,
    }
}

fn healthy(before: i64, count: u32) -> Run {
    run(before, count, Outcome::Success, Reason::Healthy, 200)
}

fn timed_out(before: i64, count: u32) -> Run {
    run(before, count, Outcome::Failure, Reason::TimedOut, 504)
}

fn pod(probes: Vec<ProbeHistory>) -> PodHistory {
    PodHistory {
        namespace: "shop".to_owned(),
        name: "cart-0".to_owned(),
        uid: "u1".to_owned(),
        now_ms: RESTART + 60_000,
        not_served: None,
        state: PodState::default(),
        events: Vec::new(),
        daemon_starts_ms: vec![RESTART - 3_600_000],
        probes,
        skipped: Vec::new(),
    }
}

fn restarted_pod(probes: Vec<ProbeHistory>) -> PodHistory {
    PodHistory {
        events: vec![PodEvent {
            at_ms: RESTART,
            change: PodChange::Restarted {
                container: "app".to_owned(),
                restarts: 1,
                reason: "Error".to_owned(),
                exit_code: Some(137),
            },
        }],
        ..pod(probes)
    }
}

#[test]
fn a_restart_after_as_many_failures_as_the_threshold_is_the_probes() {
    let runs = vec![healthy(3_000, 297), timed_out(30, 3), healthy(-10, 3)];
    assert_eq!(
        conclusion(&restarted_pod(vec![probe("liveness", runs)])),
        "container app was restarted at 03:12:40: liveness http:8080/health timed out 3 times in a row (timeout 1 s; \
         p99 of the hour before 940 ms)"
    );
}

#[test]
fn a_success_within_the_second_of_the_restart_may_be_after_it() {
    let success = Run {
        since_ms: RESTART + 700,
        ..healthy(0, 1)
    };
    let runs = vec![timed_out(30, 3), success];
    let text = conclusion(&restarted_pod(vec![probe("startup", runs)]));
    assert!(
        text.contains(": startup http:8080/health timed out 3 times"),
        "{text}"
    );
}

#[test]
fn failures_of_several_kinds_are_one_streak() {
    let runs = vec![
        timed_out(30, 2),
        // The kubelet does not count it.
        run(15, 1, Outcome::Unknown, Reason::Cancelled, 500),
        run(10, 1, Outcome::Failure, Reason::HttpStatus, 503),
    ];
    let text = conclusion(&restarted_pod(vec![probe("liveness", runs)]));
    assert!(
        text.ends_with(
            "liveness http:8080/health failed 3 times in a row, the last time it got HTTP 503"
        ),
        "{text}"
    );
}

#[test]
fn a_restart_without_enough_failures_is_not_the_probes() {
    let few = vec![healthy(3_000, 297), timed_out(20, 2)];
    let text = conclusion(&restarted_pod(vec![probe("liveness", few)]));
    assert!(
        text.contains("(it had ended with exit code 137); before that"),
        "{text}"
    );
    assert!(
        text.ends_with("fewer than the 3 failures that restart it"),
        "{text}"
    );
    let over = vec![timed_out(100, 3), healthy(70, 7)];
    let text = conclusion(&restarted_pod(vec![probe("liveness", over)]));
    assert!(
        text.ends_with("(it had ended with exit code 137); the daemon recorded no failed liveness or startup probe before that"),
        "{text}"
    );
    // A readiness probe restarts nothing.
    let text = conclusion(&restarted_pod(vec![probe(
        "readiness",
        vec![timed_out(100, 3)],
    )]));
    assert!(
        text.contains("recorded no failed liveness or startup probe")
            || text.starts_with("unready"),
        "{text}"
    );
}

#[test]
fn a_restart_before_the_daemon_saw_the_pod_is_in_the_status() {
    let pod = PodHistory {
        state: PodState {
            containers: vec![ContainerState {
                name: "app".to_owned(),
                restarts: 4,
                started_ms: Some(RESTART - 86_400_000),
                ended: Some(Ended {
                    reason: "OOMKilled".to_owned(),
                    exit_code: 137,
                    at_ms: None,
                }),
            }],
            ..PodState::default()
        },
        ..pod(vec![probe("liveness", vec![healthy(30, 3)])])
    };
    let text = conclusion(&pod);
    assert!(
        text.starts_with("container app was restarted at 2026-11-29 03:12:40 (it had ended with exit code 137, OOMKilled)"),
        "{text}"
    );
}

#[test]
fn results_that_are_the_kubelets_own_are_not_guessed() {
    let connected = run(3_000, 300, Outcome::Unknown, Reason::Connected, 500);
    let probes = vec![probe("liveness", vec![connected])];
    let text = conclusion(&restarted_pod(probes.clone()));
    assert!(
        text.ends_with(
            "only the kubelet knows the results of liveness http:8080/health, see the pod's events"
        ),
        "{text}"
    );
    assert_eq!(
        conclusion(&pod(probes)),
        "only the kubelet knows the results of its probes: see the pod's events"
    );
}

#[test]
fn a_readiness_probe_at_its_threshold_makes_the_pod_unready() {
    let runs = vec![
        healthy(100, 7),
        run(30, 6, Outcome::Failure, Reason::Refused, 500),
    ];
    let mut pod = pod(vec![probe("readiness", runs)]);
    pod.events = vec![PodEvent {
        at_ms: RESTART - 10_000,
        change: PodChange::Unready,
    }];
    assert_eq!(
        conclusion(&pod),
        "unready since 03:12:30: readiness http:8080/health was refused 6 times in a row"
    );
}

#[test]
fn a_pod_that_was_never_ready_is_unready_since_its_probe_reached_the_threshold() {
    let runs = vec![run(30, 6, Outcome::Failure, Reason::Refused, 500)];
    assert_eq!(
        conclusion(&pod(vec![probe("readiness", runs)])),
        "unready since 03:12:30: readiness http:8080/health was refused 6 times in a row"
    );
}

#[test]
fn failures_below_the_threshold_say_what_follows() {
    let pod = pod(vec![probe(
        "liveness",
        vec![healthy(100, 7), timed_out(30, 2)],
    )]);
    assert_eq!(
        conclusion(&pod),
        "since 03:12:10 liveness http:8080/health timed out 2 times in a row (timeout 1 s; p99 of the hour before 940 ms); \
         failure number 3 makes the kubelet restart the container"
    );
}

#[test]
fn without_a_failure_it_says_since_when() {
    let passing = pod(vec![probe("liveness", vec![healthy(100, 7)])]);
    assert_eq!(conclusion(&passing), "no probe has failed since 03:11:00");
    let again = pod(vec![probe(
        "liveness",
        vec![timed_out(100, 1), healthy(90, 9)],
    )]);
    let text = conclusion(&again);
    assert!(
        text.starts_with("no probe fails now; the last failure was at 03:11:00: "),
        "{text}"
    );
    assert_eq!(conclusion(&pod(Vec::new())), "no probe has a result yet");
}

#[test]
fn a_pod_that_is_not_served_has_the_rule_that_decided() {
    let mut pod = restarted_pod(Vec::new());
    pod.not_served = Some("it has no probes to serve".to_owned());
    assert_eq!(
        conclusion(&pod),
        "not served: it has no probes to serve; container app was restarted at 03:12:40 (it had ended with exit code \
         137), and the daemon served none of its probes"
    );
}

#[test]
fn where_requests_cannot_be_distinguished_the_period_limits_the_count() {
    let mut both = probe("liveness", vec![timed_out(30, 3)]);
    both.probe.shared_with = 1;
    both.runs[0].count = 6;
    let text = conclusion(&restarted_pod(vec![both]));
    assert!(text.contains("timed out 3 times in a row"), "{text}");
}

#[test]
fn the_timeline_has_everything_in_order() {
    let runs = vec![healthy(100, 7), timed_out(30, 3), healthy(-10, 1)];
    let lines: Vec<String> = timeline(&restarted_pod(vec![probe("liveness", runs)]))
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    assert_eq!(
        lines,
        [
            "the daemon was started",
            "app: liveness http:8080/health passed after 3 ms, 7 times until 03:12:00",
            "app: liveness http:8080/health timed out after 3 ms, 3 times until 03:12:30; 3 in a row, failureThreshold 3",
            "the kubelet restarted container app (it had ended with exit code 137); 1 in all",
            "app: liveness http:8080/health passed after 3 ms",
        ]
    );
}
