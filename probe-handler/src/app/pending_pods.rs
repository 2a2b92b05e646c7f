//! Pods that are not served for want of a network namespace or an address, and what the log said of them.
//! Every pod is so for a moment when it starts, and at the daemon's own start all are: only what stays so is
//! worth a line.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reconcile::registry::PodEntry;

/// For how long a pod may not be served before the log says why.
pub const GRACE: Duration = Duration::from_secs(10);
/// How many pods are named at once for the same cause; of more the log tells the number.
const NAMED: usize = 5;

/// How many causes are said of a pod: some name addresses, of which a pod can give itself any number.
const SAID: usize = 8;

/// What is known of the pods that are waited for.
#[derive(Debug, Default)]
pub struct PendingPods {
    pods: BTreeMap<String, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    why: String,
    /// The causes that were said already.
    said: Vec<String>,
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// Why these pods are not served.
    pub why: String,
    /// UIDs of the pods, the first few of them.
    pub pods: Vec<String>,
    /// How many more there are.
    pub more: usize,
}

impl PendingPods {
    /// What is known of a pod has changed: the addresses in its namespace, or those in its status.
    pub fn placed(&mut self, entry: &PodEntry, now: Instant) {
        let uid = &entry.pod.id.uid;
        if entry.placement.is_none() {
            return; // Said by whoever looks for it.
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

    /// Pod `uid` is not served, for this reason.
    pub fn lost(&mut self, uid: &str, why: String, now: Instant) {
        match self.pods.get_mut(uid) {
            Some(waiting) => waiting.why = why,
            None => {
                let waiting = Waiting {
                    since: now,
                    why,
                    said: Vec::new(),
                };
                let _ = self.pods.insert(uid.to_owned(), waiting);
            }
        }
    }

    /// Pod `uid` is served, or gone; whether the log had said that it is not served.
    pub fn done(&mut self, uid: &str) -> bool {
        let waiting = self.pods.remove(uid);
        waiting.is_some_and(|waiting| !waiting.said.is_empty())
    }

    /// When there is next something to say.
    pub fn due(&self) -> Option<Instant> {
        let unsaid = self.pods.values().filter(|waiting| waiting.is_news());
        unsaid.map(|waiting| waiting.since + GRACE).min()
    }

    /// What there is to say now, once for each pod and cause.
    pub fn take(&mut self, now: Instant) -> Vec<Line> {
        let mut causes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (uid, waiting) in &mut self.pods {
            if waiting.is_news() && now >= waiting.since + GRACE {
                waiting.said.push(waiting.why.clone());
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

/// Why a pod whose namespace is known is not served at all of its addresses.
fn without_address(entry: &PodEntry) -> Option<String> {
    let found = &entry.placement.as_ref()?.addresses;
    let told = entry.named();
    if found.is_empty() {
        return Some("its network namespace has no address (yet)".to_owned());
    }
    if told.iter().all(|ip| found.contains(ip)) {
        return None;
    }
    Some(format!(
        "status.podIPs {told:?} and the addresses in its network namespace {found:?} disagree: the probes of \
         those that are not in both are left alone"
    ))
}

impl Waiting {
    fn is_news(&self) -> bool {
        self.said.len() < SAID && !self.said.contains(&self.why)
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
    fn what_lasts_is_said_once_for_each_cause() {
        let (mut unserved, start) = (PendingPods::default(), Instant::now());
        unserved.lost("a", "no cgroup".to_owned(), start);
        assert_eq!(unserved.due(), Some(start + GRACE));
        assert_eq!(unserved.take(start + GRACE / 2), []);
        assert_eq!(unserved.take(start + GRACE), [line("no cgroup", &["a"])]);
        assert_eq!(unserved.due(), None);
        // It gets further, and falls back: only the first is news.
        unserved.lost("a", "no process".to_owned(), start + GRACE);
        assert_eq!(unserved.take(start + GRACE), [line("no process", &["a"])]);
        unserved.lost("a", "no cgroup".to_owned(), start + GRACE);
        assert_eq!(unserved.due(), None);
        assert!(unserved.done("a"));
        assert!(!unserved.done("a"));
    }

    #[test]
    fn a_pod_that_finds_ever_new_causes_is_not_listened_to_for_ever() {
        let (mut unserved, start) = (PendingPods::default(), Instant::now());
        let said = (0..100).flat_map(|cause| {
            unserved.lost("a", format!("cause {cause}"), start);
            unserved.take(start + GRACE)
        });
        assert_eq!(said.count(), SAID);
        assert_eq!(unserved.due(), None);
    }

    #[test]
    fn what_passes_is_never_said() {
        let (mut unserved, start) = (PendingPods::default(), Instant::now());
        unserved.lost("a", "no cgroup".to_owned(), start);
        assert!(!unserved.done("a"));
        assert_eq!(unserved.due(), None);
        // Another time begins anew.
        unserved.lost("a", "no cgroup".to_owned(), start + GRACE);
        assert_eq!(unserved.take(start + GRACE), []);
    }

    #[test]
    fn of_many_pods_the_number_is_said() {
        let (mut unserved, start) = (PendingPods::default(), Instant::now());
        for pod in 0..100 {
            unserved.lost(&format!("{pod:03}"), "no cgroup".to_owned(), start);
        }
        let said = unserved.take(start + GRACE);
        assert_eq!(said.len(), 1);
        assert_eq!((said[0].pods.len(), said[0].more), (NAMED, 100 - NAMED));
    }
}
