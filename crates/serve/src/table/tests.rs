//! What a route records of its verdicts.

use super::*;
use crate::metrics::fixtures;
use model::ProbeKind;

#[test]
fn only_a_change_of_the_result_is_reported() {
    let stats = RouteStats::default();
    for (reason, status, news) in [
        (Reason::Healthy, 200, StatusChange::None),
        (Reason::HttpStatus, 503, StatusChange::Fails),
        (Reason::HttpStatus, 503, StatusChange::None),
        // Another status, another reason.
        (Reason::HttpStatus, 500, StatusChange::Fails),
        (Reason::Refused, 500, StatusChange::Fails),
        (Reason::Cancelled, 500, StatusChange::None),
        (Reason::Refused, 500, StatusChange::None),
        (Reason::Healthy, 204, StatusChange::PassesAgain),
        (Reason::Healthy, 200, StatusChange::None),
        (Reason::Refused, 500, StatusChange::Fails),
        // HTTPS or gRPC, whose result the handler does not see.
        (Reason::Spliced, 200, StatusChange::None),
        (Reason::Refused, 500, StatusChange::Fails),
        (Reason::Dial, 500, StatusChange::StandsAside),
        (Reason::Dial, 500, StatusChange::None),
        (Reason::Healthy, 200, StatusChange::PassesAgain),
        // A redirect, followed by a failure, again and again.
        (Reason::HttpStatus, 503, StatusChange::Fails),
        (Reason::Connected, 200, StatusChange::None),
        (Reason::HttpStatus, 503, StatusChange::None),
    ] {
        let verdict = Verdict {
            reason,
            status,
            detail: String::new(),
            latency: None,
        };
        let outcome = verdict.outcome(false);
        assert_eq!(
            stats.status_change(outcome, &verdict),
            news,
            "{reason:?} {status}"
        );
    }
}

fn failure() -> Verdict {
    Verdict {
        reason: Reason::HttpStatus,
        status: 503,
        detail: String::new(),
        latency: None,
    }
}

#[test]
fn failures_in_a_row_are_counted_until_the_probe_passes() {
    let route = fixtures::route(ProbeKind::Liveness);
    let member = &route.members[0];
    assert_eq!(route.failures_in_a_row(member), 0);
    for count in 1..=4 {
        let _ = route.stats.record(Outcome::Failure, failure());
        assert_eq!(route.failures_in_a_row(member), count);
    }
    let cancelled = fixtures::verdict(Reason::Cancelled, 500);
    let _ = route.stats.record(Outcome::Unknown, cancelled);
    assert_eq!(
        route.failures_in_a_row(member),
        4,
        "the kubelet does not count it"
    );
    let healthy = fixtures::verdict(Reason::Healthy, 200);
    let _ = route.stats.record(Outcome::Success, healthy);
    assert_eq!(route.failures_in_a_row(member), 0);
}

#[test]
fn a_probe_that_shares_its_verdicts_has_not_failed_more_often_than_its_period_allows() {
    let route = fixtures::route(ProbeKind::Liveness);
    route.stats.share();
    for _ in 0..4 {
        let _ = route.stats.record(Outcome::Failure, failure());
    }
    assert_eq!(route.failures_in_a_row(&route.members[0]), 1);
    let period = Duration::from_secs(10);
    for (seconds, count) in [(0, 1), (4, 1), (9, 2), (21, 3)] {
        assert_eq!(possible(Duration::from_secs(seconds), period), count);
    }
}

#[test]
fn where_different_checks_share_a_route_one_that_passes_does_not_hide_one_that_fails() {
    let stats = RouteStats::new(true);
    let serving = fixtures::verdict(Reason::Spliced, 200);
    for turn in 0..3 {
        let not_serving = fixtures::verdict(Reason::NotServing, 500);
        let failed = stats.status_change(Outcome::Failure, &not_serving);
        assert_eq!(failed == StatusChange::Fails, turn == 0, "turn {turn}");
        let passed = stats.status_change(Outcome::Success, &serving);
        assert_eq!(passed, StatusChange::None, "turn {turn}");
    }
    let long_ago = Instant::now().checked_sub(SHARED_PASSES_AFTER);
    if let Some((_, at)) = &mut stats.state.lock().failing {
        *at = long_ago.expect("an uptime of a minute");
    }
    let passed = stats.status_change(Outcome::Success, &serving);
    assert_eq!(passed, StatusChange::PassesAgain);
}
