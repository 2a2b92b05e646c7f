//! The history of a pod as text for people, and as data for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::explain::{duration, timeline};
use crate::history::PodHistory;
use crate::output::printable;
use crate::time::rfc3339;

/// The output for programs.
#[derive(Debug, Serialize)]
pub struct Explained<'a> {
    /// [`crate::explain::conclusion`].
    pub conclusion: &'a str,
    /// The history.
    #[serde(flatten)]
    pub pod: &'a PodHistory,
}

/// The probes, the history with its times in UTC, and the sentence at the end.
pub fn text(pod: &PodHistory, conclusion: &str) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "pod {}/{}, UID {}", pod.namespace, pod.name, pod.uid);
    for probe in &pod.probes {
        let probe = &probe.probe;
        let mut known = Vec::new();
        let every = probe.period_ms.map(|period| duration(period * 1_000));
        known.extend(every.map(|period| format!("every {period}")));
        let timeout = probe.timeout_ms.map(|timeout| duration(timeout * 1_000));
        known.extend(timeout.map(|timeout| format!("timeout {timeout}")));
        let failures = probe.failure_threshold;
        known.extend(failures.map(|count| format!("failureThreshold {count}")));
        let (container, kind, check) = (&probe.container, &probe.probe, probe.check());
        let known = known.join(", ");
        let _ = writeln!(text, "{container}: {kind} {check} {known}");
    }
    for skipped in &pod.skipped {
        let (container, kind, why) = (&skipped.container, &skipped.probe, &skipped.why);
        let _ = writeln!(text, "{container}: {kind} is not served: {why}");
    }
    text.push('\n');
    for (at_ms, what) in timeline(pod) {
        let _ = writeln!(text, "{}  {what}", rfc3339(at_ms / 1_000 * 1_000));
    }
    let _ = writeln!(text, "\n{conclusion}");
    text.lines().fold(String::new(), |mut safe, line| {
        safe.push_str(&printable(line));
        safe.push('\n');
        safe
    })
}
