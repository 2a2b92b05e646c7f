//! Noting a verdict: in metrics and `status` each one, in the log what is news.

use tracing::{debug, info};

use super::table::{Route, StatusChange};
use crate::metrics::Metrics;
use model::PodId;
use probe::verdict::Verdict;

/// Notes the verdict of `route` of `pod`. A probe that goes on failing as it did is told of once: of a pod that is
/// never ready there would be a line each second.
pub fn note(metrics: &Metrics, pod: &PodId, route: &Route, verdict: Verdict) {
    let outcome = verdict.outcome(route.is_hook());
    // A level that is off costs no words: most probes pass as they did.
    macro_rules! tell {
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
        StatusChange::Fails => tell!(info, "probe fails"),
        StatusChange::PassesAgain => tell!(info, "probe passes again"),
        StatusChange::StandsAside => tell!(
            info,
            "cannot dial the app from inside the pod: relaying its probe through the mesh"
        ),
        StatusChange::None => tell!(debug, "probe result"),
    }
    metrics.verdict(pod, route, verdict);
}
