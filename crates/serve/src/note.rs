//! Records a verdict: metrics and `status` get each one, the log gets only changes.

use tracing::{debug, info};

use super::table::{Route, StatusChange};
use crate::metrics::Metrics;
use model::PodId;
use probe::verdict::Verdict;

/// Records the verdict of `route` of `pod`. A probe that keeps failing in the same way is logged once: a pod that is
/// never ready would otherwise add a line each second.
pub fn note(metrics: &Metrics, pod: &PodId, route: &Route, verdict: Verdict) {
    let outcome = verdict.outcome(route.is_hook());
    // A macro, so that a disabled level formats nothing: most probes pass as before.
    macro_rules! log_change {
        ($level:ident, $what:literal) => {
            $level!(
                %pod,
                container = route.container_label(),
                probe = route.kind_label(),
                reason = verdict.reason.name(),
                detail = verdict.detail,
                $what
            )
        };
    }
    match route.stats.status_change(outcome, &verdict) {
        StatusChange::Fails => log_change!(info, "probe fails"),
        StatusChange::PassesAgain => log_change!(info, "probe passes again"),
        StatusChange::StandsAside => log_change!(
            info,
            "cannot dial the app from inside the pod: relaying its probe through the mesh"
        ),
        StatusChange::None => log_change!(debug, "probe result"),
    }
    metrics.verdict(pod, route, verdict);
}
