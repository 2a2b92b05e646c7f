//! The state that the threads of a run share: the clock, the current kubelet, and the records for the judge.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::judge::{App, Fault, History, Span, Stable, Verdict};
use crate::kubelet::Kubelet;

/// What is certain about the app at a place.
#[derive(Clone, Copy, Debug)]
struct Now {
    since: Duration,
    app: App,
    pod_since: Duration,
}

#[derive(Debug)]
pub(super) struct World {
    start: Instant,
    ended: AtomicBool,
    kubelet: Mutex<(Arc<Kubelet>, Duration)>,
    now: Mutex<Vec<Option<Now>>>,
    history: Mutex<History>,
    serving_since: Mutex<Option<Duration>>,
    verdicts: Mutex<Vec<Verdict>>,
    actions: Mutex<Vec<(Span, String)>>,
}

impl World {
    pub(super) fn new(places: usize, kubelet: Kubelet) -> Self {
        let history = History {
            apps: vec![Vec::new(); places],
            ..History::default()
        };
        Self {
            start: Instant::now(),
            ended: AtomicBool::new(false),
            kubelet: Mutex::new((Arc::new(kubelet), Duration::ZERO)),
            now: Mutex::new(vec![None; places]),
            history: Mutex::new(history),
            serving_since: Mutex::new(None),
            verdicts: Mutex::new(Vec::new()),
            actions: Mutex::new(Vec::new()),
        }
    }

    /// Time since the start.
    pub(super) fn time(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// The kubelet, and when it started.
    pub(super) fn kubelet(&self) -> (Arc<Kubelet>, Duration) {
        lock(&self.kubelet).clone()
    }

    pub(super) fn set_kubelet(&self, kubelet: Kubelet) {
        *lock(&self.kubelet) = (Arc::new(kubelet), self.time());
    }

    /// Marks the state of the app at `place` as uncertain until [`World::is`].
    pub(super) fn changes(&self, place: usize) {
        if let Some(now) = lock(&self.now)[place].take() {
            let span = self.since(now.since);
            let stable = Stable {
                span,
                app: now.app,
                pod_since: now.pod_since,
            };
            lock(&self.history).apps[place].push(stable);
        }
    }

    pub(super) fn is(&self, place: usize, app: App, pod_since: Duration) {
        let now = Now {
            since: self.time(),
            app,
            pod_since,
        };
        lock(&self.now)[place] = Some(now);
    }

    pub(super) fn is_certain(&self, place: usize) -> bool {
        lock(&self.now)[place].is_some()
    }

    pub(super) fn serves(&self) {
        *lock(&self.serving_since) = Some(self.time());
    }

    pub(super) fn serves_no_more(&self) {
        if let Some(since) = lock(&self.serving_since).take() {
            let span = self.since(since);
            lock(&self.history).served.push(span);
        }
    }

    /// Records a fault that ends now.
    pub(super) fn fault(&self, fault: Fault, from: Duration) {
        let span = self.since(from);
        lock(&self.history).faults.push((fault, span));
    }

    /// Records an action that ends now, for messages.
    pub(super) fn action(&self, from: Duration, action: String) {
        lock(&self.actions).push((self.since(from), action));
    }

    /// The actions that ended at most three seconds before `span`, or during it.
    pub(super) fn actions_before(&self, span: Span) -> Vec<String> {
        const BEFORE: Duration = Duration::from_secs(3);
        let actions = lock(&self.actions);
        let before = actions
            .iter()
            .filter(|(action, _)| action.until + BEFORE >= span.from && action.from <= span.until);
        before
            .map(|(action, name)| format!("{:?} to {:?}: {name}", action.from, action.until))
            .collect()
    }

    pub(super) fn verdict(&self, verdict: Verdict) {
        lock(&self.verdicts).push(verdict);
    }

    /// All records, after the end.
    pub(super) fn records(&self) -> (History, Vec<Verdict>) {
        let places = lock(&self.now).len();
        (0..places).for_each(|place| self.changes(place));
        self.serves_no_more();
        (
            std::mem::take(&mut lock(&self.history)),
            std::mem::take(&mut lock(&self.verdicts)),
        )
    }

    fn since(&self, from: Duration) -> Span {
        Span {
            from,
            until: self.time(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
