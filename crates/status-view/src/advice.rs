//! `status --advice`: what to change about probes, from their history.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::explain::duration;
use crate::history::{PodHistory, ProbeHistory};
use crate::output::{printable, wrapped};
use model::result::{Outcome, Reason, Run};

/// The text to show if there is no advice.
pub const NOTHING: &str = "no advice: no timeout is close to what the app needs, no result flaps, each port has a listener";
/// The time that is considered, in milliseconds.
const HOUR_MS: u64 = 3_600_000;
/// A timeout is too close from this share of it on, in percent.
const CLOSE: u64 = 80;
/// So many timeouts in the hour are advice, although the app usually answers soon enough.
const TIMEOUTS: u32 = 3;
/// So many changes of a result in the hour are flapping.
const CHANGES: usize = 6;
/// So many refusals, and no success, mean that nothing listens there.
const REFUSALS: u32 = 3;
/// The number of results after which their interval counts, and the share of the period, in percent, from which on it is too
/// long. The kubelet begins each probe at its period, give or take its own delays.
const RESULTS: u32 = 20;
const LATE: u64 = 120;
/// Width of the indentation below a pod's name.
const INDENT: usize = 2;

/// One piece of advice about a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// `metadata.namespace` of the pod.
    pub namespace: String,
    /// `metadata.name` of the pod.
    pub pod: String,
    /// Container that declares the probe.
    pub container: String,
    /// [`model::ProbeKind::name`].
    pub probe: String,
    /// Which kind of advice: `timeout`, `flapping`, `no-listener`, `same-check` or `late`.
    pub about: String,
    /// What was seen, and what to do, as a sentence.
    pub text: String,
    /// A patch of the pod's workload, for `kubectl patch KIND NAME --patch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<Value>,
}

/// All advice about a pod.
pub fn advice(pod: &PodHistory) -> Vec<Advice> {
    let mut all = Vec::new();
    for probe in &pod.probes {
        let mut add = |about: &str, text: String, patch: Option<Value>| {
            all.push(Advice {
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                container: probe.probe.container.clone(),
                probe: probe.probe.probe.clone(),
                about: about.to_owned(),
                text: format!("{}: {text}", probe.probe.check()),
                patch,
            });
        };
        if let Some((text, seconds)) = timeout(probe, pod.now_ms) {
            add("timeout", text, patch(probe, "timeoutSeconds", seconds));
        }
        if let Some(text) = flapping(probe, pod.now_ms) {
            add("flapping", text, None);
        }
        if let Some(text) = no_listener(probe) {
            add("no-listener", text, None);
        }
        if let Some(text) = same_check(probe, &pod.probes) {
            add("same-check", text, None);
        }
        if let Some(text) = late(probe, pod) {
            add("late", text, None);
        }
    }
    all
}

/// A paragraph for each pod. `width`: `None` if it is unlimited.
pub fn text<'a>(
    advice: impl IntoIterator<Item = (Option<&'a str>, &'a Advice)>,
    width: Option<usize>,
) -> String {
    let mut text = String::new();
    let mut last = String::new();
    let below = width.map(|width| width.saturating_sub(INDENT));
    for (node, one) in advice {
        let on = node.map_or_else(String::new, |node| format!(" on {node}"));
        let name = format!("{}/{}{on}", one.namespace, one.pod);
        if name != last {
            text.push_str(&wrapped(&printable(&name), width, 0));
            last = name;
        }
        let line = format!("{} {} {}", one.container, one.probe, one.text);
        text.push_str("  ");
        text.push_str(&wrapped(&printable(&line), below, 2 * INDENT));
        if let Some(patch) = &one.patch {
            // Not wrapped, so that it can be copied.
            text.push_str(&format!("    --patch '{patch}'\n"));
        }
    }
    match text.is_empty() {
        true => wrapped(NOTHING, width, 0),
        false => text,
    }
}

/// Runs that ended in the last hour.
fn recent(probe: &ProbeHistory, now_ms: u64) -> impl Iterator<Item = &Run> {
    let since = now_ms.saturating_sub(HOUR_MS);
    probe.runs.iter().filter(move |run| run.until_ms >= since)
}

/// The app needs most of the timeout, or more. Also returns the `timeoutSeconds` to set.
fn timeout(probe: &ProbeHistory, now_ms: u64) -> Option<(String, u64)> {
    let timeout_us = probe.probe.timeout_ms? * 1_000;
    let timed_out = |run: &&Run| run.reason == Reason::TimedOut;
    let timed_out: u32 = recent(probe, now_ms)
        .filter(timed_out)
        .fold(0, |sum, run| sum.saturating_add(run.count));
    let p99_us = probe.p99_us.unwrap_or_default();
    if p99_us * 100 < timeout_us * CLOSE && timed_out < TIMEOUTS {
        return None;
    }
    let mut seen = Vec::new();
    if timed_out > 0 {
        seen.push(format!("timed out {timed_out} times in the last hour"));
    }
    if p99_us > 0 {
        seen.push(format!(
            "99 % of its successes took up to {}",
            duration(p99_us)
        ));
    }
    let seconds = (2 * p99_us.max(timeout_us)).div_ceil(1_000_000);
    let text = format!(
        "{}, and timeoutSeconds allows {}; find out why the app is slow, or allow {seconds} s",
        seen.join(", "),
        duration(timeout_us),
    );
    Some((text, seconds))
}

/// The result changes often.
fn flapping(probe: &ProbeHistory, now_ms: u64) -> Option<String> {
    let known: Vec<Outcome> = recent(probe, now_ms)
        .map(|run| run.outcome)
        .filter(|outcome| *outcome != Outcome::Unknown)
        .collect();
    let changes = known.windows(2).filter(|two| two[0] != two[1]).count();
    (changes >= CHANGES).then(|| {
        format!(
            "its result changed {changes} times in the last hour; a larger failureThreshold ignores single failures, and a \
             larger successThreshold of readiness ignores single successes"
        )
    })
}

/// Nothing has ever listened on the port.
fn no_listener(probe: &ProbeHistory) -> Option<String> {
    let last = probe.runs.last()?;
    let never =
        probe.probe.success == 0 && probe.runs.iter().all(|run| run.outcome != Outcome::Success);
    (never && last.reason == Reason::Refused && last.count >= REFUSALS).then(|| {
        format!(
            "nothing has ever listened on port {} of the pod's address; is it the right port, and does the app listen on all \
             addresses instead of 127.0.0.1?",
            probe.probe.port
        )
    })
}

/// Liveness makes the same check as readiness, and gives up no later.
fn same_check(probe: &ProbeHistory, all: &[ProbeHistory]) -> Option<String> {
    let of_container = |kind: &str| {
        all.iter()
            .map(|one| &one.probe)
            .find(|one| one.container == probe.probe.container && one.probe == kind)
    };
    let liveness = of_container("liveness").filter(|_| probe.probe.probe == "liveness")?;
    let readiness = of_container("readiness")?;
    let patience = |probe: &crate::status::ProbeStatus| {
        Some(probe.period_ms? * u64::from(probe.failure_threshold?))
    };
    let gives_up_first = patience(liveness)? <= patience(readiness)?;
    (liveness.check() == readiness.check() && gives_up_first).then(|| {
        "readiness makes the same check, and liveness gives up no later: an app that is only busy is restarted instead of \
         getting no traffic; give liveness a check of its own, or a larger failureThreshold"
            .to_owned()
    })
}

/// The kubelet makes the probe less often than declared.
fn late(probe: &ProbeHistory, pod: &PodHistory) -> Option<String> {
    let declared_ms = probe.probe.period_ms?;
    // Shared results are those of several probes, and no results were recorded while no daemon ran.
    let alone = probe.probe.shared_with == 0 && !probe.probe.is_shared;
    let run = probe.runs.last().filter(|run| {
        let daemon = pod.daemon_starts_ms.last().copied().unwrap_or_default();
        alone && run.count >= RESULTS && run.since_ms >= daemon
    })?;
    let every_ms = (run.until_ms - run.since_ms) / u64::from(run.count - 1);
    (every_ms * 100 >= declared_ms * LATE).then(|| {
        format!(
            "the kubelet made its last {} probes every {} instead of every {}: does the node have too little processor time?",
            run.count,
            duration(every_ms * 1_000),
            duration(declared_ms * 1_000)
        )
    })
}

/// A strategic merge patch that sets one field of a probe.
fn patch(probe: &ProbeHistory, field: &str, value: u64) -> Option<Value> {
    let name = match probe.probe.probe.as_str() {
        "liveness" => "livenessProbe",
        "readiness" => "readinessProbe",
        "startup" => "startupProbe",
        _ => return None,
    };
    let container = json!({"name": probe.probe.container, name: {field: value}});
    Some(json!({"spec": {"template": {"spec": {"containers": [container]}}}}))
}

#[cfg(test)]
mod tests;
