//! Records a verdict: metrics and `status` get each one, the log gets only changes.

use std::iter;

use tracing::{Level, debug, info, warn};

use super::table::{Route, StatusChange};
use crate::metrics::Metrics;
use model::{Action, PodId, Probe};
use probe::verdict::{Outcome, Verdict};

/// Records the verdict of `route` of `pod`, and reports what it changes. A probe that keeps failing in the same way is logged
/// once, and once more when it has failed as often as its threshold: a pod that is never ready would otherwise add a line each
/// second.
pub fn note(metrics: &Metrics, pod: &PodId, route: &Route, verdict: Verdict) {
    let outcome = verdict.outcome(route.is_hook());
    let fails = outcome == Outcome::Failure;
    let before: Vec<u32> = match fails {
        true => failures(route).collect(),
        false => Vec::new(),
    };
    let change = route.stats.status_change(outcome, &verdict);
    // Most probes pass, like the previous time: then nothing is formatted or copied.
    let is_logged = fails || change != StatusChange::None || tracing::enabled!(Level::DEBUG);
    let text = is_logged.then(|| verdict.clone());
    metrics.verdict(pod, route, verdict);
    if let Some(verdict) = text {
        let before = before.into_iter().chain(iter::repeat(0));
        for ((member, before), now) in route.members.iter().zip(before).zip(failures(route)) {
            metrics.flips.send(pod, member, change, &verdict);
            let failures = Failures { before, now };
            log(pod, member, change, &verdict, fails, failures);
        }
    }
}

/// The failures in a row of each probe of the route.
fn failures(route: &Route) -> impl Iterator<Item = u32> {
    let members = route.members.iter();
    members.map(|member| route.failures_in_a_row(member))
}

/// A probe's failures in a row before a verdict, and including it. Probes that share a route share its verdicts, so not every
/// failed verdict is a failure of each probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failures {
    before: u32,
    now: u32,
}

/// Logs what a verdict changes for one probe.
fn log(
    pod: &PodId,
    probe: &Probe,
    change: StatusChange,
    verdict: &Verdict,
    fails: bool,
    failures: Failures,
) {
    let hook = probe.kind.is_hook();
    let threshold = (!hook).then_some(probe.schedule.failure_threshold);
    let target = match &probe.action {
        Action::Http { target, .. } => Some(target.as_str()),
        Action::Grpc { service, .. } => Some(service.as_str()),
        Action::Tcp { .. } => None,
    };
    let timeout_ms = probe
        .timeout
        .map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    macro_rules! log {
        ($level:ident, $what:literal) => {
            $level!(
                %pod,
                container = probe.container,
                probe = probe.kind.name(),
                scheme = probe.action.protocol(),
                port = probe.action.port(),
                path = target,
                timeout_ms,
                reason = verdict.reason.name(),
                failures = failures.now,
                failure_threshold = threshold,
                detail = verdict.detail,
                $what
            )
        };
    }
    match severity(change, fails, failures, threshold) {
        Severity::Warning => log!(warn, "probe has failed as often as its failureThreshold"),
        Severity::Failure => log!(info, "probe fails"),
        Severity::PassesAgain => log!(info, "probe passes again"),
        Severity::StandsAside => log!(
            info,
            "cannot dial the app from inside the pod: relaying its probe through the mesh"
        ),
        Severity::Detail => log!(debug, "probe result"),
    }
}

/// How a verdict is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Severity {
    Warning,
    Failure,
    PassesAgain,
    StandsAside,
    Detail,
}

/// `threshold`: `None` for a hook, which fails with its first failure.
fn severity(
    change: StatusChange,
    fails: bool,
    failures: Failures,
    threshold: Option<u32>,
) -> Severity {
    let has_effect = match threshold {
        Some(threshold) => failures.now == threshold && failures.before != threshold,
        None => change == StatusChange::Fails,
    };
    match change {
        _ if fails && has_effect => Severity::Warning,
        StatusChange::Fails => Severity::Failure,
        StatusChange::PassesAgain => Severity::PassesAgain,
        StatusChange::StandsAside => Severity::StandsAside,
        StatusChange::None => Severity::Detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failure_that_reaches_the_threshold_is_a_warning() {
        let fails = |change, now| {
            let before = now - 1;
            severity(change, true, Failures { before, now }, Some(3))
        };
        assert_eq!(fails(StatusChange::Fails, 1), Severity::Failure);
        assert_eq!(fails(StatusChange::None, 2), Severity::Detail);
        assert_eq!(fails(StatusChange::None, 3), Severity::Warning);
        assert_eq!(
            fails(StatusChange::Fails, 3),
            Severity::Warning,
            "another reason"
        );
        assert_eq!(fails(StatusChange::None, 4), Severity::Detail, "only once");
    }

    #[test]
    fn a_failure_of_another_probe_on_the_same_port_warns_of_this_one_no_second_time() {
        let same = Failures { before: 3, now: 3 };
        assert_eq!(
            severity(StatusChange::None, true, same, Some(3)),
            Severity::Detail
        );
    }

    #[test]
    fn a_hook_fails_at_once() {
        let first = Failures { before: 0, now: 1 };
        let hook = severity(StatusChange::Fails, true, first, None);
        assert_eq!(hook, Severity::Warning);
    }

    #[test]
    fn a_probe_that_passes_again_is_no_warning() {
        let none = Failures { before: 0, now: 0 };
        let passes = severity(StatusChange::PassesAgain, false, none, Some(3));
        assert_eq!(passes, Severity::PassesAgain);
    }
}
