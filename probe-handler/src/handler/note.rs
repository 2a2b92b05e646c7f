//! Noting a verdict: in metrics and `status` each one, in the log what is news.

use tracing::{debug, info};

use super::table::{News, Route};
use crate::check::verdict::Verdict;
use crate::observe::metrics::Metrics;
use crate::pods::model::PodId;

/// Notes the verdict of `route` of `pod`. A probe that goes on failing as it did is told of once: of a pod that is
/// never ready there would be a line each second.
pub fn note(metrics: &Metrics, pod: &PodId, route: &Route, verdict: Verdict) {
    let (container, probe) = (route.container_label(), route.kind_label());
    let (reason, detail) = (verdict.reason.name(), &verdict.detail);
    match route.stats.news(verdict.outcome(route.is_hook()), &verdict) {
        News::Fails => info!(%pod, container, probe, reason, detail, "probe fails"),
        News::PassesAgain => info!(%pod, container, probe, detail, "probe passes again"),
        News::None => debug!(%pod, container, probe, reason, detail, "probed"),
    }
    metrics.verdict(pod, route, verdict);
}
