//! Compares verdicts with the truth. Pure: times are relative to the start of the run.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// A probe of each pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// `httpGet`.
    Http,
    /// `httpGet` with TLS.
    Https,
    /// `grpc`.
    Grpc,
    /// `tcpSocket` of a port on which the app listens.
    Tcp,
    /// `tcpSocket` of a port on which nothing listens.
    Closed,
}

impl Kind {
    pub(super) const ALL: [Self; 5] =
        [Self::Http, Self::Https, Self::Grpc, Self::Tcp, Self::Closed];
}

/// The state of the app at a place, as far as it is certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum App {
    /// It answers HTTP with this status, which no pod had before at this place.
    Healthy(u16),
    /// It answers HTTP with 503.
    Failing,
    /// Nothing listens.
    Down,
}

/// An interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: Duration,
    pub(super) until: Duration,
}

impl Span {
    fn covers(self, other: Self) -> bool {
        self.from <= other.from && other.until <= self.until
    }

    fn touches(self, other: Self) -> bool {
        self.from <= other.until && other.from <= self.until
    }
}

/// An app's state and when it was certain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stable {
    pub(super) span: Span,
    pub(super) app: App,
    /// When its pod started.
    pub(super) pod_since: Duration,
}

/// A verdict of the kubelet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verdict {
    pub(super) place: usize,
    pub(super) kind: Kind,
    pub(super) span: Span,
    pub(super) passed: bool,
    pub(super) status: Option<u16>,
    /// Start time of the kubelet that made it.
    pub(super) kubelet_since: Duration,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// The daemon is being killed.
    Kill,
    /// A daemon without pins beside another one is being killed: its handler has connections of every kind.
    KillOfUnpinned,
    /// No daemon runs.
    Dead,
    /// The daemon is stopped.
    Hung,
    /// A second daemon starts, and the first one ends.
    Upgrade,
    /// A daemon with a wrong configuration starts, and ends.
    Misconfigured,
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// By place.
    pub(super) apps: Vec<Vec<Stable>>,
    pub(super) faults: Vec<(Fault, Span)>,
    /// When a daemon served.
    pub(super) served: Vec<Span>,
}

/// Why a verdict is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// Left out by docs: a check was in the handler when its daemon was killed.
    InFlightAtKill,
    /// Left out by docs: begun in the first second of a hang, or in flight then.
    HangsFirstSecond,
    /// Left out by docs: no daemon ran when the pod started.
    PodWithoutDaemon,
    /// Left out by docs: no daemon ran when the kubelet started.
    KubeletWithoutDaemon,
    /// Left out: a new kubelet probes before the daemon has found it.
    NewKubelet,
    /// The daemon was dead.
    Dead,
    /// The daemon was stopped for more than a second.
    Hung,
    /// A daemon replaced another.
    Upgrade,
    /// A daemon with a wrong configuration ran.
    Misconfigured,
    /// None of these.
    None,
}

impl Cause {
    /// All causes, in the order of output.
    pub(super) const ALL: [Self; 10] = [
        Self::Dead,
        Self::Hung,
        Self::Upgrade,
        Self::Misconfigured,
        Self::None,
        Self::InFlightAtKill,
        Self::HangsFirstSecond,
        Self::PodWithoutDaemon,
        Self::KubeletWithoutDaemon,
        Self::NewKubelet,
    ];

    /// The fault that causes it, if it is a fault of the daemon.
    pub(super) const fn fault(self) -> Option<Fault> {
        match self {
            Self::Dead => Some(Fault::Dead),
            Self::InFlightAtKill => Some(Fault::Kill),
            Self::Hung | Self::HangsFirstSecond => Some(Fault::Hung),
            Self::Upgrade => Some(Fault::Upgrade),
            Self::Misconfigured => Some(Fault::Misconfigured),
            Self::PodWithoutDaemon | Self::KubeletWithoutDaemon | Self::NewKubelet | Self::None => {
                None
            }
        }
    }

    /// Whether the docs state that verdicts are wrong during it.
    pub(super) const fn left_out(self) -> bool {
        matches!(
            self,
            Self::InFlightAtKill
                | Self::HangsFirstSecond
                | Self::PodWithoutDaemon
                | Self::KubeletWithoutDaemon
                | Self::NewKubelet
        )
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InFlightAtKill => "check in the handler at a kill",
            Self::HangsFirstSecond => "first second of a hang",
            Self::PodWithoutDaemon => "pod that started without a daemon",
            Self::KubeletWithoutDaemon => "kubelet that started without a daemon",
            Self::NewKubelet => "first 200 ms of a new kubelet",
            Self::Dead => "daemon dead",
            Self::Hung => "daemon hung",
            Self::Upgrade => "upgrade",
            Self::Misconfigured => "wrong configuration",
            Self::None => "no fault of daemon or kubelet",
        })
    }
}

/// The timeout of a probe and of SO_LINGER are a second each: a longer verdict was not caused by the daemon.
const STALLED: Duration = Duration::from_secs(3);
const SECOND: Duration = Duration::from_secs(1);
/// How long a new daemon has for the pods that it finds.
const SETTLED: Duration = Duration::from_secs(2);
/// A kubelet needs longer than this from its start to its first probe.
const NEW: Duration = Duration::from_millis(200);

/// The result that plain Kubernetes would get: whether the probe passes, and its status.
fn truth(kind: Kind, app: App) -> (bool, Option<u16>) {
    match (kind, app) {
        (_, App::Down) | (Kind::Closed, _) => (false, None),
        (Kind::Grpc | Kind::Tcp, _) => (true, None),
        (Kind::Http | Kind::Https, App::Healthy(status)) => (true, Some(status)),
        (Kind::Http | Kind::Https, App::Failing) => (false, Some(503)),
    }
}

impl History {
    /// The state of the app during the whole verdict, if it did not change.
    fn stable(&self, verdict: &Verdict) -> Option<&Stable> {
        let mut states = self.apps.get(verdict.place)?.iter();
        states.find(|stable| stable.span.covers(verdict.span))
    }

    /// Whether a daemon served for long enough between the two times.
    fn settled(&self, from: Duration, until: Duration) -> bool {
        self.served.iter().any(|served| {
            let (from, until) = (served.from.max(from), served.until.min(until));
            until.saturating_sub(from) >= SETTLED
        })
    }

    /// Whether a daemon served for long enough after `time` to find what started then.
    fn serves_at(&self, time: Duration) -> bool {
        let mut served = self.served.iter();
        served.any(|served| served.from <= time && time + NEW <= served.until)
    }

    fn cause(&self, verdict: &Verdict, stable: &Stable) -> Cause {
        let begun = verdict.span.from;
        let of = |kind| {
            let faults = self.faults.iter().filter(move |(fault, _)| *fault == kind);
            faults.map(|(_, span)| *span)
        };
        let kubelet = verdict.kubelet_since;
        if begun.saturating_sub(kubelet) < NEW && !kubelet.is_zero() {
            return Cause::NewKubelet;
        }
        if !self.serves_at(kubelet) && !self.settled(kubelet, begun) {
            return Cause::KubeletWithoutDaemon;
        }
        if !self.serves_at(stable.pod_since) && !self.settled(stable.pod_since, begun) {
            return Cause::PodWithoutDaemon;
        }
        let in_handler = verdict.kind == Kind::Http;
        if in_handler && of(Fault::Kill).any(|kill| kill.touches(verdict.span))
            || of(Fault::KillOfUnpinned).any(|kill| kill.touches(verdict.span))
        {
            return Cause::InFlightAtKill;
        }
        let first_second = |hung: Span| Span {
            from: hung.from,
            until: hung.until.min(hung.from + SECOND),
        };
        if of(Fault::Hung).any(|hung| first_second(hung).touches(verdict.span)) {
            return Cause::HangsFirstSecond;
        }
        for (fault, cause) in [
            (Fault::Dead, Cause::Dead),
            (Fault::Hung, Cause::Hung),
            (Fault::Upgrade, Cause::Upgrade),
            (Fault::Misconfigured, Cause::Misconfigured),
        ] {
            // A wrong verdict within a second after a fault counts as its effect.
            let mut spans = of(fault);
            if spans.any(|span| {
                Span {
                    from: span.from,
                    until: span.until + SECOND,
                }
                .touches(verdict.span)
            }) {
                return cause;
            }
        }
        Cause::None
    }
}

/// The result of a run.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    /// Verdicts during which the app's state did not change.
    pub(super) judged: usize,
    /// Verdicts during which it changed.
    pub(super) uncertain: usize,
    /// Verdicts that took much longer than their timeout, because the prober itself did not run.
    pub(super) stalled: usize,
    faults: BTreeMap<Fault, usize>,
    pub(super) causes: BTreeMap<Cause, Wrong>,
    /// The first wrong verdicts that docs do not leave out.
    pub(super) examples: Vec<String>,
    /// Time of the first of them.
    pub(super) first_wrong: Option<Span>,
}

/// Wrong verdicts of a cause.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wrong {
    pub(super) count: usize,
    /// From the first wrong verdict of a probe to its next right one.
    pub(super) longest: Duration,
}

impl Judgement {
    /// How often a fault happened.
    pub(super) fn faults(&self, fault: Fault) -> usize {
        self.faults.get(&fault).copied().unwrap_or_default()
    }

    /// The number of wrong verdicts that docs do not leave out.
    pub(super) fn wrong(&self) -> usize {
        let causes = self.causes.iter().filter(|(cause, _)| !cause.left_out());
        causes.map(|(_, wrong)| wrong.count).sum()
    }
}

/// Judges all verdicts of a run.
pub(super) fn judge(history: &History, verdicts: &[Verdict]) -> Judgement {
    const EXAMPLES: usize = 10;
    let mut verdicts: Vec<_> = verdicts.iter().collect();
    verdicts.sort_by_key(|verdict| verdict.span.from);
    let mut judgement = Judgement::default();
    for (fault, _) in &history.faults {
        *judgement.faults.entry(*fault).or_default() += 1;
    }
    // For each probe, since when its verdicts are wrong, and why.
    let mut streaks: BTreeMap<(usize, Kind), (Duration, Cause)> = BTreeMap::new();
    for verdict in verdicts {
        let Some(stable) = history.stable(verdict) else {
            judgement.uncertain += 1;
            continue;
        };
        if verdict.span.until - verdict.span.from > STALLED {
            judgement.stalled += 1;
            continue;
        }
        judgement.judged += 1;
        let series = (verdict.place, verdict.kind);
        let (passes, status) = truth(verdict.kind, stable.app);
        if (verdict.passed, verdict.status) == (passes, status) {
            if let Some((since, cause)) = streaks.remove(&series) {
                let gap = verdict.span.from.saturating_sub(since);
                let wrong = judgement.causes.entry(cause).or_default();
                wrong.longest = wrong.longest.max(gap);
            }
            continue;
        }
        let cause = history.cause(verdict, stable);
        let _since = streaks.entry(series).or_insert((verdict.span.from, cause));
        judgement.causes.entry(cause).or_default().count += 1;
        if !cause.left_out() {
            let _first = judgement.first_wrong.get_or_insert(verdict.span);
        }
        if !cause.left_out() && judgement.examples.len() < EXAMPLES {
            let example = format!("{cause}: the app is {:?}: {verdict:?}", stable.app);
            judgement.examples.push(example);
        }
    }
    judgement
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const fn span(from: u64, until: u64) -> Span {
        Span {
            from: ms(from),
            until: ms(until),
        }
    }

    fn history(faults: &[(Fault, Span)], served: &[Span]) -> History {
        let healthy = Stable {
            span: span(0, 100_000),
            app: App::Healthy(210),
            pod_since: ms(0),
        };
        History {
            apps: vec![vec![healthy]],
            faults: faults.to_vec(),
            served: served.to_vec(),
        }
    }

    fn http(from: u64, until: u64, passed: bool) -> Verdict {
        Verdict {
            place: 0,
            kind: Kind::Http,
            span: span(from, until),
            passed,
            status: passed.then_some(210),
            kubelet_since: ms(0),
        }
    }

    fn causes(history: &History, verdicts: &[Verdict]) -> Vec<(Cause, usize, Duration)> {
        let judgement = judge(history, verdicts);
        let causes = judgement.causes.into_iter();
        causes
            .map(|(cause, wrong)| (cause, wrong.count, wrong.longest))
            .collect()
    }

    #[test]
    fn the_truth_is_that_of_plain_kubernetes() {
        for (kind, app, expected) in [
            (Kind::Http, App::Healthy(211), (true, Some(211))),
            (Kind::Https, App::Failing, (false, Some(503))),
            (Kind::Grpc, App::Failing, (true, None)),
            (Kind::Tcp, App::Healthy(211), (true, None)),
            (Kind::Tcp, App::Down, (false, None)),
            (Kind::Closed, App::Healthy(211), (false, None)),
        ] {
            assert_eq!(truth(kind, app), expected, "{kind:?} {app:?}");
        }
    }

    #[test]
    fn a_verdict_during_a_change_of_the_app_does_not_count() {
        let mut history = history(&[], &[span(0, 100_000)]);
        history.apps[0][0].span = span(0, 5_000);
        let judgement = judge(&history, &[http(4_999, 5_001, false), http(10, 20, true)]);
        assert_eq!((judgement.judged, judgement.uncertain), (1, 1));
        assert_eq!(judgement.wrong(), 0);
    }

    #[test]
    fn a_verdict_of_a_prober_that_stood_still_does_not_count() {
        let judgement = judge(&history(&[], &[]), &[http(5_000, 8_001, false)]);
        assert_eq!((judgement.stalled, judgement.wrong()), (1, 0));
    }

    #[test]
    fn an_answer_of_the_pod_that_had_the_address_before_is_wrong() {
        let mut verdict = http(5_000, 5_010, true);
        verdict.status = Some(209);
        let history = history(&[], &[span(0, 100_000)]);
        assert_eq!(
            causes(&history, &[verdict]),
            [(Cause::None, 1, Duration::ZERO)]
        );
    }

    #[test]
    fn a_check_in_the_handler_at_a_kill_is_left_out_and_a_later_one_is_not() {
        let dead = (Fault::Dead, span(5_000, 8_000));
        let kill = (Fault::Kill, span(4_999, 5_001));
        let history = history(&[kill, dead], &[span(0, 5_000), span(8_000, 100_000)]);
        assert_eq!(
            causes(
                &history,
                &[http(4_990, 5_010, false), http(6_000, 6_010, true)]
            ),
            [(Cause::InFlightAtKill, 1, ms(1_010))]
        );
        assert_eq!(
            causes(
                &history,
                &[http(6_000, 6_010, false), http(6_500, 6_510, true)]
            ),
            [(Cause::Dead, 1, ms(500))]
        );
        let mut opaque = http(4_990, 5_010, false);
        (opaque.kind, opaque.status) = (Kind::Grpc, None);
        assert_eq!(causes(&history, &[opaque])[0].0, Cause::Dead);
    }

    #[test]
    fn the_first_second_of_a_hang_is_left_out_and_the_next_is_not() {
        let hung = (Fault::Hung, span(5_000, 8_000));
        let history = history(&[hung], &[span(0, 5_000), span(8_000, 100_000)]);
        for (begun, cause) in [
            (4_995, Cause::HangsFirstSecond),
            (5_900, Cause::HangsFirstSecond),
            (6_100, Cause::Hung),
        ] {
            let wrong = http(begun, begun + 1_000, false);
            assert_eq!(causes(&history, &[wrong])[0].0, cause, "begun at {begun}");
        }
    }

    #[test]
    fn pods_and_kubelets_that_start_without_a_daemon_are_left_out_until_one_has_settled() {
        let dead = (Fault::Dead, span(1_000, 5_000));
        let mut history = history(&[dead], &[span(0, 1_000), span(5_000, 100_000)]);
        history.apps[0][0].pod_since = ms(3_000);
        let wrong = |begun| http(begun, begun + 10, false);
        assert_eq!(
            causes(&history, &[wrong(4_000)])[0].0,
            Cause::PodWithoutDaemon
        );
        assert_eq!(causes(&history, &[wrong(9_000)])[0].0, Cause::None);
        history.apps[0][0].pod_since = ms(0);
        let mut verdict = wrong(4_000);
        // The second one starts immediately before the daemon ends.
        for since in [3_000, 990] {
            verdict.kubelet_since = ms(since);
            assert_eq!(
                causes(&history, &[verdict])[0].0,
                Cause::KubeletWithoutDaemon
            );
        }
    }
}
