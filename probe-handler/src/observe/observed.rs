//! Observed probes, as `probe-handler status --changes` shows them.

use std::time::SystemTime;

use compare::pods::ObservedPod;
use compare::{Comparison, Observed, failing_reason};
use model::Action;
use probe::verdict::Verdict;
use status_view::observed::{ComparedProbe, ComparedResult, ObservedStatus};

/// The state of `pod` now.
pub fn observed_status(pod: &ObservedPod) -> ObservedStatus {
    ObservedStatus {
        namespace: pod.id.namespace.clone(),
        name: pod.id.name.clone(),
        trouble: pod.trouble.clone(),
        probes: pod.probes.iter().map(|probe| compared(probe)).collect(),
    }
}

fn compared(observed: &Observed) -> ComparedProbe {
    let declared = &observed.declared;
    let Comparison {
        compared,
        cured,
        exposed,
        last,
    } = observed.comparison();
    let age = |at: SystemTime| {
        let age = at.elapsed().unwrap_or_default();
        u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
    };
    ComparedProbe {
        container: declared.container.clone(),
        probe: declared.kind.name().to_owned(),
        mode: observed.mode.name().to_owned(),
        check: check(&declared.action),
        change: last.as_ref().map(|last| last.change.to_string()),
        consequence: last.as_ref().and_then(|last| {
            let consequence = last.change.consequence(declared.kind, declared.schedule)?;
            Some(format!("{consequence} ({})", failing_reason(last).name()))
        }),
        now: last.as_ref().map(|last| result(&last.now)),
        then: last.as_ref().map(|last| result(&last.then)),
        age_ms: last.as_ref().map(|last| age(last.at)),
        compared,
        cured,
        exposed,
    }
}

fn result(verdict: &Verdict) -> ComparedResult {
    ComparedResult {
        result: verdict.outcome(false).name().to_owned(),
        reason: verdict.reason.name().to_owned(),
        detail: verdict.detail.clone(),
    }
}

/// The protocol, the port, and the path or service.
fn check(action: &Action) -> String {
    let (protocol, port) = (action.protocol(), action.port());
    match action {
        Action::Http { target, .. } => format!("{protocol}:{port}{target}"),
        Action::Grpc { service, .. } if !service.is_empty() => {
            format!("{protocol}:{port}/{service}")
        }
        Action::Tcp { .. } | Action::Grpc { .. } => format!("{protocol}:{port}"),
    }
}
