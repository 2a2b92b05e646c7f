//! Why a pod was restarted, is unready or is not served: one sentence, from its history.

use super::history::{PodChange, PodEvent, PodHistory, ProbeHistory};
use super::time::rfc3339;
use model::result::{Outcome, Reason, Run};

/// Times in a Pod's status are whole seconds, rounded down.
const ROUNDING_MS: u64 = 1_000;

/// Failures of a probe in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Streak {
    count: u32,
    since_ms: u64,
    until_ms: u64,
    last: Run,
    /// Whether all of them have the same reason.
    is_uniform: bool,
    p99_us: u32,
}

/// The sentence.
pub fn conclusion(pod: &PodHistory) -> String {
    let restart = last_restart(pod);
    if let Some(why) = &pod.not_served {
        let restarted = restart.map_or_else(String::new, |restart| {
            format!(
                "; {} at {}{}, and the daemon served none of its probes",
                restart.what(),
                at(restart.at_ms, pod.now_ms),
                restart.end()
            )
        });
        return format!("not served: {why}{restarted}");
    }
    // A failure after the last restart is reported instead of the restart.
    let failing = pod.probes.iter().filter_map(|probe| {
        let streak = streak(&probe.runs, u64::MAX)?;
        restart
            .as_ref()
            .is_none_or(|restart| streak.since_ms > restart.at_ms + ROUNDING_MS)
            .then_some((probe, streak))
    });
    // A liveness probe at its threshold matters most.
    let worst = failing.max_by_key(|(probe, streak)| {
        let reached = reaches(probe, streak);
        (reached, rank(&probe.probe.probe), streak.count)
    });
    match (restart, worst) {
        (_, Some((probe, streak))) if reaches(probe, &streak) => now_failing(pod, probe, &streak),
        (Some(restart), _) => restarted(pod, &restart),
        (None, Some((probe, streak))) => now_failing(pod, probe, &streak),
        (None, None) => nothing_fails(pod),
    }
}

/// A restart of a container.
struct Restart<'a> {
    at_ms: u64,
    container: &'a str,
    reason: &'a str,
    exit_code: Option<i32>,
}

impl Restart<'_> {
    fn what(&self) -> String {
        format!("container {} was restarted", self.container)
    }

    /// How the container had ended.
    fn end(&self) -> String {
        match (self.exit_code, self.reason) {
            (None, _) => String::new(),
            (Some(code), "" | "Error") => format!(" (it had ended with exit code {code})"),
            (Some(code), reason) => format!(" (it had ended with exit code {code}, {reason})"),
        }
    }
}

fn last_restart(pod: &PodHistory) -> Option<Restart<'_>> {
    let seen = pod.events.iter().filter_map(|event| match &event.change {
        PodChange::Restarted {
            container,
            reason,
            exit_code,
            ..
        } => Some(Restart {
            at_ms: event.at_ms,
            container,
            reason,
            exit_code: *exit_code,
        }),
        PodChange::Ready | PodChange::Unready => None,
    });
    // A restart from before the daemon found the pod is only in the Pod's status.
    let counted = pod.state.containers.iter();
    let counted = counted
        .filter(|container| container.restarts > 0)
        .filter_map(|container| {
            let ended = container.ended.as_ref();
            Some(Restart {
                at_ms: container.started_ms.or(ended?.at_ms)?,
                container: &container.name,
                reason: ended.map(|ended| ended.reason.as_str()).unwrap_or_default(),
                exit_code: ended.map(|ended| ended.exit_code),
            })
        });
    seen.chain(counted).max_by_key(|restart| restart.at_ms)
}

fn restarted(pod: &PodHistory, restart: &Restart<'_>) -> String {
    let what = format!("{} at {}", restart.what(), at(restart.at_ms, pod.now_ms));
    let of_container = || {
        let probes = pod.probes.iter();
        probes.filter(|probe| {
            probe.probe.container == restart.container
                && matches!(probe.probe.probe.as_str(), "liveness" | "startup")
        })
    };
    let cause = of_container()
        .filter_map(|probe| Some((probe, streak(&probe.runs, restart.at_ms + ROUNDING_MS)?)))
        .max_by_key(|(probe, streak)| (reaches(probe, streak), streak.until_ms));
    if let Some((probe, streak)) = cause {
        let failed = failed(probe, &streak);
        if reaches(probe, &streak) {
            return format!("{what}: {failed}");
        }
        let threshold = probe.probe.failure_threshold.unwrap_or(1);
        return format!(
            "{what}{}; before that {failed}, fewer than the {threshold} failures that restart it",
            restart.end()
        );
    }
    let own = of_container().find(|probe| {
        let before = probe.runs.iter().rfind(|run| run.since_ms <= restart.at_ms);
        before.is_some_and(|run| matches!(run.reason, Reason::Connected | Reason::Spliced))
    });
    match own {
        Some(probe) => format!(
            "{what}{}: only the kubelet knows the results of {}, see the pod's events",
            restart.end(),
            name(probe)
        ),
        None => format!(
            "{what}{}; the daemon recorded no failed liveness or startup probe before that",
            restart.end()
        ),
    }
}

fn now_failing(pod: &PodHistory, probe: &ProbeHistory, streak: &Streak) -> String {
    let failed = failed(probe, streak);
    let since = at(streak.since_ms, pod.now_ms);
    let threshold = probe.probe.failure_threshold.unwrap_or(1);
    let effect = match probe.probe.probe.as_str() {
        "readiness" => "makes the pod unready",
        "liveness" | "startup" => "makes the kubelet restart the container",
        _ => return format!("since {since} {failed}"),
    };
    match (reaches(probe, streak), probe.probe.probe.as_str()) {
        (true, "readiness") => {
            let unready = pod
                .events
                .iter()
                .rfind(|event| event.change == PodChange::Unready);
            let since = unready
                .filter(|event| event.at_ms + ROUNDING_MS >= streak.since_ms)
                .map_or_else(
                    || reached(probe, streak, threshold).min(pod.now_ms),
                    |event| event.at_ms,
                );
            format!("unready since {}: {failed}", at(since, pod.now_ms))
        }
        (true, _) => format!("since {since} {failed}, which {effect}"),
        (false, _) => format!("since {since} {failed}; failure number {threshold} {effect}"),
    }
}

fn nothing_fails(pod: &PodHistory) -> String {
    let last = pod.probes.iter().filter_map(|probe| {
        let run = probe
            .runs
            .iter()
            .rfind(|run| run.outcome == Outcome::Failure)?;
        let streak = streak(&probe.runs, run.until_ms)?;
        Some((probe, streak))
    });
    if let Some((probe, streak)) = last.max_by_key(|(_, streak)| streak.until_ms) {
        return format!(
            "no probe fails now; the last failure was at {}: {}",
            at(streak.until_ms, pod.now_ms),
            failed(probe, &streak)
        );
    }
    let runs = || pod.probes.iter().flat_map(|probe| &probe.runs);
    let Some(since) = runs().map(|run| run.since_ms).min() else {
        return "no probe has a result yet".to_owned();
    };
    if runs().all(|run| run.outcome == Outcome::Unknown) {
        return "only the kubelet knows the results of its probes: see the pod's events".to_owned();
    }
    format!("no probe has failed since {}", at(since, pod.now_ms))
}

/// The last failures in a row that began before `before_ms`, if no success followed them before that.
fn streak(runs: &[Run], before_ms: u64) -> Option<Streak> {
    let mut found: Option<Streak> = None;
    for run in runs.iter().rev().filter(|run| run.since_ms <= before_ms) {
        match (run.outcome, run.reason) {
            (Outcome::Failure, _) => match &mut found {
                None => {
                    found = Some(Streak {
                        count: run.count,
                        since_ms: run.since_ms,
                        until_ms: run.until_ms,
                        last: *run,
                        is_uniform: true,
                        p99_us: run.p99_us,
                    });
                }
                Some(streak) => {
                    streak.count = streak.count.saturating_add(run.count);
                    streak.since_ms = run.since_ms;
                    streak.is_uniform &=
                        (run.reason, run.status) == (streak.last.reason, streak.last.status);
                    streak.p99_us = run.p99_us;
                }
            },
            (Outcome::Success, _) | (_, Reason::Connected | Reason::Spliced) => {
                // The kubelet rounds times to seconds, so within that second this may be the success after
                // the restart.
                if found.is_some() || run.since_ms + ROUNDING_MS < before_ms {
                    break;
                }
            }
            // The kubelet does not count this result.
            (Outcome::Unknown, _) => {}
        }
    }
    found
}

/// When the probe has failed this often. Used for a pod that was never ready, because it has no change to
/// unready.
fn reached(probe: &ProbeHistory, streak: &Streak, threshold: u32) -> u64 {
    let period = probe.probe.period_ms.unwrap_or(0);
    let later = period.saturating_mul(u64::from(threshold.saturating_sub(1)));
    streak.since_ms.saturating_add(later).min(streak.until_ms)
}

/// How many of the failures are this probe's: if requests can't be distinguished, at most as many as its period
/// allows.
fn own_count(probe: &ProbeHistory, streak: &Streak) -> u32 {
    let period = probe.probe.period_ms.unwrap_or(0).max(1);
    if probe.probe.shared_with == 0 && !probe.probe.is_shared {
        return streak.count;
    }
    let periods = (streak.until_ms - streak.since_ms + period / 2) / period;
    let possible = u32::try_from(periods).unwrap_or(u32::MAX).saturating_add(1);
    streak.count.min(possible)
}

fn reaches(probe: &ProbeHistory, streak: &Streak) -> bool {
    own_count(probe, streak) >= probe.probe.failure_threshold.unwrap_or(1)
}

fn rank(kind: &str) -> u8 {
    match kind {
        "liveness" | "startup" => 2,
        "readiness" => 1,
        _ => 0,
    }
}

/// `liveness http:8080/health timed out 3 times in a row (timeout 1 s; p99 of the hour before 940 ms)`.
fn failed(probe: &ProbeHistory, streak: &Streak) -> String {
    let name = name(probe);
    let what = result(streak.last.reason, streak.last.status);
    let times = match own_count(probe, streak) {
        1 => "once".to_owned(),
        count => format!("{count} times in a row"),
    };
    let failed = match streak.is_uniform {
        true => format!("{name} {what} {times}"),
        false => format!("{name} failed {times}, the last time it {what}"),
    };
    let mut known = Vec::new();
    if streak.last.reason == Reason::TimedOut {
        known.extend(
            probe
                .probe
                .timeout_ms
                .map(|timeout| format!("timeout {}", duration(timeout * 1_000))),
        );
        if streak.p99_us > 0 {
            let p99 = duration(streak.p99_us.into());
            known.push(format!("p99 of the hour before {p99}"));
        }
    }
    match known.is_empty() {
        true => failed,
        false => format!("{failed} ({})", known.join("; ")),
    }
}

fn name(probe: &ProbeHistory) -> String {
    format!("{} {}", probe.probe.probe, probe.probe.check())
}

/// What happened, after the name of the probe.
pub fn result(reason: Reason, status: u16) -> String {
    let text = match reason {
        Reason::Healthy => "passed",
        Reason::HttpStatus => return format!("got HTTP {status}"),
        Reason::Refused => "was refused",
        Reason::TimedOut => "timed out",
        Reason::ConnectionClosed => "got no answer before the app closed the connection",
        Reason::BodyIncomplete => "got an incomplete body",
        Reason::BadResponse => "got an invalid answer",
        Reason::TooManyRedirects => "was redirected too often",
        Reason::Tls => "failed in the TLS handshake",
        Reason::NotServing => "was answered, but not SERVING",
        Reason::GrpcStatus => "got a gRPC error",
        Reason::Dial => "could not be dialled from inside the pod",
        Reason::Overloaded => "found too many checks in flight",
        Reason::Cancelled => "was abandoned by the kubelet",
        Reason::Spliced | Reason::Connected => "reached the app",
    };
    text.to_owned()
}

/// `03:12:40` on the day of `now_ms`, else with the date; in UTC.
pub fn at(ms: u64, now_ms: u64) -> String {
    let text = rfc3339(ms / 1_000 * 1_000);
    let today = rfc3339(now_ms);
    let time = text.trim_end_matches('Z');
    match time.split_once('T') {
        Some((day, time)) if today.starts_with(day) => time.to_owned(),
        _ => time.replace('T', " "),
    }
}

/// `1 s`, `940 ms`, `412 us`.
pub fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{} ms", us / 1_000),
        _ if us.is_multiple_of(1_000_000) => format!("{} s", us / 1_000_000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// A line of the history: its time, and what happened.
pub fn timeline(pod: &PodHistory) -> Vec<(u64, String)> {
    let mut lines = Vec::new();
    for probe in &pod.probes {
        let mut streak = 0_u32;
        for run in &probe.runs {
            let counted = counted(run, &mut streak, probe);
            let took = match run.latency_us {
                0 => String::new(),
                us => format!(" after {}", duration(us.into())),
            };
            let text = result(run.reason, run.status);
            let (container, name) = (&probe.probe.container, name(probe));
            lines.push((
                run.since_ms,
                format!("{container}: {name} {text}{took}{counted}"),
            ));
        }
    }
    lines.extend(
        pod.events
            .iter()
            .map(|event| (event.at_ms, event_text(event))),
    );
    let starts = pod.daemon_starts_ms.iter();
    lines.extend(starts.map(|&at_ms| (at_ms, "the daemon was started".to_owned())));
    lines.sort_by_key(|(at_ms, _)| *at_ms);
    lines
}

/// The number of results of `run`, and what the kubelet counts.
fn counted(run: &Run, streak: &mut u32, probe: &ProbeHistory) -> String {
    let threshold = match run.outcome {
        Outcome::Failure => {
            *streak = streak.saturating_add(run.count);
            probe
                .probe
                .failure_threshold
                .map(|threshold| format!("; {streak} in a row, failureThreshold {threshold}"))
        }
        Outcome::Success => {
            *streak = 0;
            probe
                .probe
                .success_threshold
                .filter(|&threshold| threshold > 1)
                .map(|threshold| format!("; successThreshold {threshold}"))
        }
        Outcome::Unknown => None,
    };
    let times = match run.count {
        1 => String::new(),
        count => format!(", {count} times until {}", at(run.until_ms, run.since_ms)),
    };
    format!("{times}{}", threshold.unwrap_or_default())
}

fn event_text(event: &PodEvent) -> String {
    match &event.change {
        PodChange::Ready => "the pod became ready".to_owned(),
        PodChange::Unready => "the pod became unready".to_owned(),
        PodChange::Restarted {
            container,
            restarts,
            reason,
            exit_code,
        } => {
            let restart = Restart {
                at_ms: event.at_ms,
                container,
                reason,
                exit_code: *exit_code,
            };
            format!(
                "the kubelet restarted container {container}{}; {restarts} in all",
                restart.end()
            )
        }
    }
}

#[cfg(test)]
mod tests;
