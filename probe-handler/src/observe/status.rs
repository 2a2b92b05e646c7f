//! Rows of `probe-handler status`, from the handler's table and the programs' counters.

use std::collections::BTreeMap;
use std::sync::Arc;

use probe_handler_common::counters::Counter;

use super::moment::Moment;
use model::{Action, Probe};
use probe::verdict::{Reason, Verdict};
use serve::table::Route;
use status_view::status::{LastVerdict, ProbeStatus};

/// The row of probe `member` of `route`, with ages at `now`.
pub fn probe_row(route: &Route, member: &Probe, now: Moment) -> ProbeStatus {
    let (target, service) = match &member.action {
        Action::Http { target, .. } => (Some(target.clone()), None),
        Action::Grpc { service, .. } if !service.is_empty() => (None, Some(service.clone())),
        Action::Grpc { .. } | Action::Tcp { .. } => (None, None),
    };
    let (success, failure, unknown) = route.stats.counts();
    let last = route.stats.last().map(|(at, verdict)| LastVerdict {
        outcome: verdict.outcome(route.is_hook()).name().to_owned(),
        status: http_status(&member.action, &verdict),
        reason: verdict.reason.name().to_owned(),
        detail: verdict.detail,
        latency_us: verdict.latency.map(|latency| whole(latency.as_micros())),
        age_ms: now.age_ms(at),
        at: now.time_of(at),
    });
    let schedule = (!member.kind.is_hook()).then_some(member.schedule);
    ProbeStatus {
        container: member.container.clone(),
        probe: member.kind.name().to_owned(),
        mode: route.mode.name().to_owned(),
        protocol: member.action.protocol().to_owned(),
        port: member.action.port(),
        target,
        service,
        timeout_ms: member.timeout.map(|timeout| whole(timeout.as_millis())),
        period_ms: schedule.map(|schedule| whole(schedule.period.as_millis())),
        failure_threshold: schedule.map(|schedule| schedule.failure_threshold),
        success_threshold: schedule.map(|schedule| schedule.success_threshold),
        failures_in_a_row: route.failures_in_a_row(member),
        shared_with: route.members.len() - 1,
        is_shared: route.stats.is_shared(),
        last,
        success,
        failure,
        unknown,
    }
}

/// The counters of the eBPF programs by name, from their values indexed by [`Counter`].
pub fn counters(values: [u64; Counter::COUNT as usize]) -> BTreeMap<String, u64> {
    Counter::ALL
        .iter()
        .zip(values)
        .map(|(counter, value)| (counter.name().to_owned(), value))
        .collect()
}

/// The status with which the app answered HTTP, if it did.
fn http_status(action: &Action, verdict: &Verdict) -> Option<u16> {
    let answered = matches!(
        verdict.reason,
        Reason::Healthy | Reason::HttpStatus | Reason::BodyIncomplete
    );
    (answered && matches!(action, Action::Http { .. })).then_some(verdict.status)
}

/// A row for each probe of a pod's routes, with ages at `now`, in a fixed order.
pub fn probe_rows(routes: &[Arc<Route>], now: Moment) -> Vec<ProbeStatus> {
    let mut rows: Vec<_> = routes
        .iter()
        .flat_map(|route| route.members.iter().map(move |member| (route, member)))
        .map(|(route, member)| probe_row(route, member, now))
        .collect();
    rows.sort_by(|a, b| order(a).cmp(&order(b)));
    rows
}

fn order(row: &ProbeStatus) -> (&str, &str, u16, &str, Option<&str>, &str) {
    let target = row.target.as_deref().or(row.service.as_deref());
    (
        &row.container,
        &row.probe,
        row.port,
        &row.protocol,
        target,
        &row.mode,
    )
}

/// Converts the 128-bit integers of `Duration`; 64 bits are enough for 500,000 years.
fn whole(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
