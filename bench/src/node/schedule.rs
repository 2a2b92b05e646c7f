//! Probes many pods periodically, as the kubelet does, and counts wrong results.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use testbed::kubelet::{Kubelet, Probe, ProbePending, ProbeResult};

/// How many wrong results are kept for the output.
const SHOWN: usize = 5;
/// How often the thread that starts probes checks for due ones.
const TICK: Duration = Duration::from_millis(1);

/// Running probes. Ends when dropped.
pub(super) struct Schedule {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    plan: Mutex<HashMap<u64, Entry>>,
    next: AtomicU64,
    stopped: AtomicBool,
    tally: Mutex<Tally>,
}

struct Entry {
    probe: Probe,
    status: u16,
    period: Duration,
    due: Instant,
}

/// The results of the probes.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Results for pods that ran during the whole probe.
    pub(super) made: u64,
    /// Wrong results: among these, those that failed or had another status than the pod's; and any with the status
    /// of another pod.
    pub(super) wrong: u64,
    /// The first few wrong results.
    pub(super) examples: Vec<String>,
}

struct Begun {
    id: u64,
    status: u16,
    at: Instant,
    probe: Probe,
    pending: ProbePending,
}

impl Schedule {
    pub(super) fn start(kubelet: &Arc<Kubelet>) -> Self {
        let shared = Arc::new(Shared::default());
        let (begun, to_collect) = channel();
        let beginner = {
            let (shared, kubelet) = (Arc::clone(&shared), Arc::clone(kubelet));
            thread::spawn(move || begin(&shared, &kubelet, &begun))
        };
        let collector = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || collect(&shared, &to_collect))
        };
        Self {
            shared,
            threads: vec![beginner, collector],
        }
    }

    /// Probes a pod from now on, first after `delay`, until [`Schedule::leave`]; it answers `status`.
    pub(super) fn join(&self, probe: Probe, status: u16, period: Duration, delay: Duration) -> u64 {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let entry = Entry {
            probe,
            status,
            period,
            due: Instant::now() + delay,
        };
        let _none = lock(&self.shared.plan).insert(id, entry);
        id
    }

    /// Stops probing a pod that is about to stop; also ignores probes in progress.
    pub(super) fn leave(&self, id: u64) {
        let _entry = lock(&self.shared.plan).remove(&id);
    }

    /// The results so far.
    pub(super) fn tally(&self) -> Tally {
        lock(&self.shared.tally).clone()
    }

    /// Ends after all started probes have a result.
    ///
    /// # Errors
    /// When the kubelet has ended.
    pub(super) fn stop(mut self) -> Result<Tally> {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a prober panicked"))??;
        }
        Ok(self.tally())
    }
}

impl Drop for Schedule {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn begin(shared: &Shared, kubelet: &Kubelet, begun: &Sender<Begun>) -> Result<()> {
    while !shared.stopped.load(Ordering::Relaxed) {
        let now = Instant::now();
        let mut due = Vec::new();
        for (id, entry) in lock(&shared.plan).iter_mut() {
            if entry.due <= now {
                entry.due = (entry.due + entry.period).max(now);
                due.push((*id, entry.status, entry.probe.clone()));
            }
        }
        for (id, status, probe) in due {
            let at = Instant::now();
            let pending = kubelet.begin(&probe)?;
            let one = Begun {
                id,
                status,
                at,
                probe,
                pending,
            };
            if begun.send(one).is_err() {
                return Ok(());
            }
        }
        thread::park_timeout(TICK);
    }
    Ok(())
}

fn collect(shared: &Shared, begun: &Receiver<Begun>) -> Result<()> {
    while let Ok(one) = begun.recv() {
        let result = one.pending.wait()?;
        let there = lock(&shared.plan).contains_key(&one.id);
        let mut tally = lock(&shared.tally);
        tally.made += u64::from(there);
        if is_wrong(&result, one.status, there) {
            tally.wrong += 1;
            if tally.examples.len() < SHOWN {
                let example = format!(
                    "{}:{} begun {:?} ago should have answered {}: {} after {:?}",
                    one.probe.ip,
                    one.probe.port,
                    one.at.elapsed(),
                    one.status,
                    result.message,
                    result.latency
                );
                tally.examples.push(example);
            }
        }
    }
    Ok(())
}

fn is_wrong(result: &ProbeResult, status: u16, there: bool) -> bool {
    let own = result.status == Some(status);
    // The daemon sends 500 and 504 if it can't reach the app.
    let anothers = result
        .status
        .is_some_and(|other| other < 300 && other != status);
    anothers || (there && !(own && result.passed()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
