//! Decides which Events the daemon reports of pods: those that the kubelet does not report. Pure functions.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{Action, PodId, Probe};
use pods::select::{NotServed, SelectedPod};
use probe::verdict::{Reason, Verdict};
use report::event::{PodEvent, Severity};
use serve::flips::Flip;

use status_view::observed::ObservedStatus;
use status_view::status::{PodStatus, Status};

/// A probe began to fail, or fails for another reason.
pub const PROBE_FAILED: &str = "ProbeFailed";
/// A probe passes again.
pub const PROBE_RECOVERED: &str = "ProbeRecovered";
/// Probes of a pod in scope are not served.
pub const NOT_SERVED: &str = "ProbesNotServed";
/// They are served again.
pub const SERVED: &str = "ProbesServed";
/// The mesh accepts connections to a port on which the app does not listen.
pub const HIDDEN: &str = "PortHiddenByMesh";

/// How long a pod must have been unserved before that is reported, because every pod is unserved while it
/// starts.
const GRACE_MS: u64 = 10_000;

/// The Event of a changed verdict.
pub fn of_flip(flip: Flip) -> PodEvent {
    let Flip {
        pod,
        probe,
        passes,
        verdict,
        at_ms,
    } = flip;
    let what = format!("{} {}", probe.kind.name(), check(&probe));
    let (severity, reason, message) = match passes {
        true => (
            Severity::Normal,
            PROBE_RECOVERED,
            format!("{what}: passes again"),
        ),
        false => (
            Severity::Warning,
            PROBE_FAILED,
            format!("{what}: {}", why(&verdict)),
        ),
    };
    PodEvent {
        pod,
        container: Some(probe.container),
        severity,
        reason,
        message,
        at_ms,
    }
}

/// Omits what differs each time, so that equal failures are one Event.
fn why(verdict: &Verdict) -> String {
    match verdict.reason {
        Reason::HttpStatus => format!("HTTP {}", verdict.status),
        Reason::TimedOut => "timed out".to_owned(),
        reason => format!("{} ({})", verdict.detail, reason.name()),
    }
}

/// The protocol, the port, and the path or service.
fn check(probe: &Probe) -> String {
    let (protocol, port) = (probe.action.protocol(), probe.action.port());
    match &probe.action {
        Action::Http { target, .. } => format!("{protocol}:{port}{target}"),
        Action::Grpc { service, .. } if !service.is_empty() => {
            format!("{protocol}:{port}/{service}")
        }
        Action::Tcp { .. } | Action::Grpc { .. } => format!("{protocol}:{port}"),
    }
}

/// The problems of pods that were reported.
#[derive(Debug, Default)]
pub struct Findings(BTreeMap<Finding, Known>);

/// A problem, from its report to its end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    uid: String,
    reason: &'static str,
    /// The container and the probe, if the problem concerns one.
    about: Option<(String, String)>,
}

#[derive(Debug)]
struct Known {
    pod: PodId,
    why: String,
    since_ms: u64,
    is_reported: bool,
}

impl Findings {
    /// The Events of what has changed up to `status` at `now_ms`; `parsed` are all pods of the source.
    pub fn update(
        &mut self,
        status: &Status,
        parsed: &[Arc<SelectedPod>],
        now_ms: u64,
    ) -> Vec<PodEvent> {
        let mut events = Vec::new();
        let mut before = std::mem::take(&mut self.0);
        for (finding, pod, why) in found(status, parsed) {
            let mut known = before.remove(&finding).unwrap_or_else(|| Known {
                pod,
                why: why.clone(),
                since_ms: now_ms,
                is_reported: false,
            });
            // A problem whose text differs only in numbers is not reported again.
            known.why = why;
            let waits = finding.about.is_none() && now_ms < known.since_ms + GRACE_MS;
            if !known.is_reported && !waits {
                known.is_reported = true;
                events.push(PodEvent {
                    pod: known.pod.clone(),
                    container: finding
                        .about
                        .as_ref()
                        .map(|(container, _)| container.clone()),
                    severity: Severity::Warning,
                    reason: finding.reason,
                    message: known.why.clone(),
                    at_ms: now_ms,
                });
            }
            let _ = self.0.insert(finding, known);
        }
        let is_there = |uid: &str| status.pods.iter().any(|pod| pod.uid == uid);
        for (finding, known) in before {
            let is_over = finding.reason == NOT_SERVED && finding.about.is_none();
            if known.is_reported && is_over && is_there(&finding.uid) {
                events.push(PodEvent {
                    pod: known.pod,
                    container: None,
                    severity: Severity::Normal,
                    reason: SERVED,
                    message: "the pod's probes are served".to_owned(),
                    at_ms: now_ms,
                });
            }
        }
        events
    }
}

/// All current problems.
fn found(status: &Status, parsed: &[Arc<SelectedPod>]) -> Vec<(Finding, PodId, String)> {
    let mut found = Vec::new();
    for pod in &status.pods {
        if let Some(why) = trouble(pod) {
            let id = PodId {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            };
            found.push(finding(&id, NOT_SERVED, None, why));
        }
    }
    for pod in parsed {
        // If no probe of the pod is served for one of these reasons, its author or the operator chose that.
        match pod.not_served {
            None | Some(NotServed::NoProbes) => {
                let mistakes = pod.skipped.iter().filter(|probe| probe.why.is_mistake());
                found.extend(mistakes.map(|probe| {
                    let kind = probe.kind.name();
                    let about = (probe.container.clone(), kind.to_owned());
                    let why = format!("{kind}: {}", probe.why);
                    finding(&pod.id, NOT_SERVED, Some(about), why)
                }));
            }
            Some(why @ NotServed::Guest) => {
                found.push(finding(&pod.id, NOT_SERVED, None, why.to_string()));
            }
            Some(NotServed::Observed) => found.extend(hidden(&pod.id, &status.observed)),
            Some(_) => {}
        }
    }
    found
}

fn finding(
    pod: &PodId,
    reason: &'static str,
    about: Option<(String, String)>,
    why: String,
) -> (Finding, PodId, String) {
    let finding = Finding {
        uid: pod.uid.clone(),
        reason,
        about,
    };
    (finding, pod.clone(), why)
}

/// The probes of an observed pod that pass only because the mesh accepts connections to closed ports.
fn hidden(pod: &PodId, observed: &[ObservedStatus]) -> Vec<(Finding, PodId, String)> {
    let of_pod = observed
        .iter()
        .filter(|one| (&one.namespace, &one.name) == (&pod.namespace, &pod.name));
    of_pod
        .flat_map(|one| &one.probes)
        .filter_map(|probe| {
            let is_closed = probe.then.as_ref()?.reason == Reason::Refused.name();
            if probe.change.as_deref() != Some("exposed") || !is_closed {
                return None;
            }
            let what = format!("{} {}", probe.probe, probe.check);
            let consequence = probe.consequence.as_deref().unwrap_or("would fail");
            let why = format!(
                "{what} passes because the mesh accepts the connection, but the app does not listen on the port; if the \
                 daemon served the probe, the pod {consequence}"
            );
            let about = (probe.container.clone(), what);
            Some(finding(pod, HIDDEN, Some(about), why))
        })
        .collect()
}

/// Why a pod is not served, or only by the kernel path.
fn trouble(pod: &PodStatus) -> Option<String> {
    let why = pod.trouble()?;
    Some(match pod.by_kernel_alone {
        true => format!("only the kernel path serves it, and no rewritten probes: {why}"),
        false => format!("its probes go through the mesh: {why}"),
    })
}

#[cfg(test)]
mod tests;
