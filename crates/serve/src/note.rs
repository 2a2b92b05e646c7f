//! Noting a verdict: in metrics and `status` each one, in the log what is news.

use tracing::{debug, info};

use super::table::{News, Route};
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
    match route.stats.news(outcome, &verdict) {
        News::Fails => tell!(info, "probe fails"),
        News::PassesAgain => tell!(info, "probe passes again"),
        News::StandsAside => tell!(
            info,
            "the pod cannot be dialled from inside: its probe is relayed as if we did not exist"
        ),
        News::None => tell!(debug, "probed"),
    }
    metrics.verdict(pod, route, verdict);
}
