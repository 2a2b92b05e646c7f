//! Pods that are not served because their network namespace or address is not found, and what was logged about them.
//! Every pod is in this state for a moment when it starts, and all pods are at the daemon's own start: only a pod that
//! stays in it is logged.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reconcile::registry::PodEntry;

/// How long a pod must have been unserved before that is logged.
pub const GRACE: Duration = Duration::from_secs(10);
/// Maximum number of pods that a log line names for one cause; it counts the others.
const NAMED: usize = 5;

/// Maximum number of causes that are logged for a pod: some contain addresses, and a pod can add any number of
/// addresses.
const MAX_CAUSES: usize = 8;

/// The pods that are not served yet.
#[derive(Debug, Default)]
pub struct PendingPods {
    pods: BTreeMap<String, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    why: String,
    /// The causes that were already logged.
    logged: Vec<String>,
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// Why these pods are not served.
    pub why: String,
    /// UIDs of the first few pods.
    pub pods: Vec<String>,
    /// Number of further pods.
    pub more: usize,
}

impl PendingPods {
    /// Updates a pod after the addresses in its namespace or its status have changed.
    pub fn placed(&mut self, entry: &PodEntry, now: Instant) {
        let uid = &entry.pod.id.uid;
        if entry.placement.is_none() {
            return; // The task that looks for its namespace reports it.
        }
        match without_address(entry) {
            Some(why) => self.lost(uid, why, now),
            None => {
                if self.done(uid) {
                    tracing::info!(pod = %entry.pod.id, "served now");
                }
            }
        }
    }

    /// Records that pod `uid` is not served because of `why`.
    pub fn lost(&mut self, uid: &str, why: String, now: Instant) {
        match self.pods.get_mut(uid) {
            Some(waiting) => waiting.why = why,
            None => {
                let waiting = Waiting {
                    since: now,
                    why,
                    logged: Vec::new(),
                };
                let _ = self.pods.insert(uid.to_owned(), waiting);
            }
        }
    }

    /// Removes pod `uid`, which is served or was deleted; returns whether it was logged as not served.
    pub fn done(&mut self, uid: &str) -> bool {
        let waiting = self.pods.remove(uid);
        waiting.is_some_and(|waiting| !waiting.logged.is_empty())
    }

    /// When the next line is due.
    pub fn due(&self) -> Option<Instant> {
        let unlogged = self.pods.values().filter(|waiting| waiting.is_unlogged());
        unlogged.map(|waiting| waiting.since + GRACE).min()
    }

    /// The lines that are due now, once for each pod and cause.
    pub fn take(&mut self, now: Instant) -> Vec<Line> {
        let mut causes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (uid, waiting) in &mut self.pods {
            if waiting.is_unlogged() && now >= waiting.since + GRACE {
                waiting.logged.push(waiting.why.clone());
                let pods = causes.entry(waiting.why.clone()).or_default();
                pods.push(uid.clone());
            }
        }
        let line = |(why, mut pods): (String, Vec<String>)| {
            let more = pods.len().saturating_sub(NAMED);
            pods.truncate(NAMED);
            Line { why, pods, more }
        };
        causes.into_iter().map(line).collect()
    }
}

/// Why a pod whose namespace is known is not served at every address.
fn without_address(entry: &PodEntry) -> Option<String> {
    let found = &entry.placement.as_ref()?.addresses;
    let in_status = entry.named();
    if found.is_empty() {
        return Some("its network namespace has no address (yet)".to_owned());
    }
    if in_status.iter().all(|ip| found.contains(ip)) {
        return None;
    }
    Some(format!(
        "status.podIPs {in_status:?} and the addresses in its network namespace {found:?} differ: probes of addresses \
         that are not in both are not served"
    ))
}

impl Waiting {
    fn is_unlogged(&self) -> bool {
        self.logged.len() < MAX_CAUSES && !self.logged.contains(&self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(why: &str, pods: &[&str]) -> Line {
        Line {
            why: why.to_owned(),
            pods: pods.iter().map(|pod| (*pod).to_owned()).collect(),
            more: 0,
        }
    }

    #[test]
    fn a_lasting_cause_is_logged_once() {
        let (mut unserved, start) = (PendingPods::default(), Instant::now());
        unserved.lost("a", "no cgroup".to_owned(), start);
        assert_eq!(unserved.due(), Some(start + GRACE));
        assert_eq!(unserved.take(start + GRACE / 2), []);
        assert_eq!(unserved.take(start + GRACE), [line("no cgroup", &["a"])]);
        assert_eq!(unserved.due(), None);
        // The pod changes to another cause and back: each cause is logged only once.
        unserved.lost("a", "no process".to_owned(), start + GRACE);
        assert_eq!(unserved.take(start + GRACE), [line("no process", &["a"])]);
        unserved.lost("a", "no cgroup".to_owned(), start + GRACE);
        assert_eq!(unserved.due(), None);
        assert!(unserved.done("a"));
        assert!(!unserved.done("a"));
    }

    #[test]
    fn a_limited_number_of_causes_is_logged_for_a_pod() {
        let (mut unserved, start) = (PendingPods::default(), Instant::now());
        let logged = (0..100).flat_map(|cause| {
            unserved.lost("a", format!("cause {cause}"), start);
            unserved.take(start + GRACE)
        });
        assert_eq!(logged.count(), MAX_CAUSES);
        assert_eq!(unserved.due(), None);
    }

    #[test]
    fn a_cause_that_ends_in_time_is_not_logged() {
        let (mut unserved, start) = (PendingPods::default(), Instant::now());
        unserved.lost("a", "no cgroup".to_owned(), start);
        assert!(!unserved.done("a"));
        assert_eq!(unserved.due(), None);
        // The next time starts a new grace period.
        unserved.lost("a", "no cgroup".to_owned(), start + GRACE);
        assert_eq!(unserved.take(start + GRACE), []);
    }

    #[test]
    fn of_many_pods_the_line_has_the_number() {
        let (mut unserved, start) = (PendingPods::default(), Instant::now());
        for pod in 0..100 {
            unserved.lost(&format!("{pod:03}"), "no cgroup".to_owned(), start);
        }
        let logged = unserved.take(start + GRACE);
        assert_eq!(logged.len(), 1);
        assert_eq!((logged[0].pods.len(), logged[0].more), (NAMED, 100 - NAMED));
    }
}
