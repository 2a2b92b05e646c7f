//! Finds the ports that a pod's own rules redirect to another port or address. No process listens on such a port itself,
//! but its probes pass without the daemon, so neither the gate nor the kernel path may act on it.
//!
//! A trial connection ([`kernel::nat_trial`]) shows where connections to a port are redirected. It is made only to ports
//! without a listener: when the pod is found, and after the kubelet's connection was refused.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, timeout};

use super::pod_task::QUEUED;
use super::pod_work::{PodWork, Turn};
use kernel::nat_trial::{self, Redirection};
use kernel::netns::Netns;
use model::Pod;
use reconcile::redirects::{Port, Redirects};

/// Maximum number of ports that are tried at once. A pod may probe many ports; the others are tried after a
/// refusal.
pub(super) const AT_ONCE: usize = 64;
/// How long to wait for answers.
const ANSWER: Duration = Duration::from_millis(100);
/// Interval between trials of ports that are redirected: the rules may have been removed.
const AGAIN: Duration = Duration::from_secs(30);
/// Time until a port may be tried again: doubled with each trial.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_DOUBLINGS: u32 = 8;

/// What is known about the ports of a pod in one sandbox.
#[derive(Debug, Default)]
pub struct OwnRedirects {
    found: Redirects,
    /// When a port may be tried again, and how often it was tried.
    tried: BTreeMap<Port, (Instant, u32)>,
}

impl OwnRedirects {
    /// The redirected ports.
    pub fn found(&self) -> &Redirects {
        &self.found
    }

    /// The redirected ports at the first of `addresses` in their family.
    fn known(&self, addresses: &[IpAddr]) -> Vec<SocketAddr> {
        let at = |(port, _): (Port, SocketAddr)| {
            let mut of_family = addresses
                .iter()
                .filter(|address| address.is_ipv4() == port.is_ipv4);
            of_family
                .next()
                .map(|address| SocketAddr::new(*address, port.number))
        };
        self.found.all().filter_map(at).collect()
    }

    /// Those of `ports` that may be tried at `now`; they then count as tried.
    pub fn due(
        &mut self,
        ports: impl IntoIterator<Item = SocketAddr>,
        now: Instant,
    ) -> Vec<SocketAddr> {
        let mut due = Vec::new();
        for at in ports {
            let (next, times) = self.tried.entry(Port::from(at)).or_insert((now, 0));
            if *next <= now && due.len() < AT_ONCE {
                *next = now + pause(*times);
                *times += 1;
                due.push(at);
            }
        }
        due
    }

    /// Records results; returns whether the set of redirected ports has changed.
    fn note(&mut self, results: Vec<(SocketAddr, Redirection)>) -> bool {
        let mut changed = false;
        for (at, led) in results {
            changed |= match led {
                Redirection::AsExpected => self.found.set(at, None),
                Redirection::Elsewhere(to) => self.found.set(at, Some(to)),
                // The trial was refused, perhaps because the target of a redirect is down. An unchanged connection of
                // the kubelet is refused too.
                Redirection::Unknown => false,
            };
        }
        changed
    }

    /// Finds out where the pod's rules redirect connections to `ports`, in `turn` or in a new turn; returns whether that has
    /// changed.
    pub async fn try_ports(
        &mut self,
        site: Site<'_>,
        ports: Vec<SocketAddr>,
        turn: Option<Turn>,
    ) -> bool {
        if ports.is_empty() {
            return false;
        }
        let turn = match turn {
            Some(turn) => turn,
            None => site.work.turn().await,
        };
        let pool = site.work.pool();
        // The pod does not wait while dials inside other pods take long; a refusal causes the next trial.
        let Ok(permit) = timeout(QUEUED, pool.dial()).await else {
            return false;
        };
        let (begun, turn) = turn.work(permit, move || nat_trial::begin(&ports)).await;
        if begun.iter().any(nat_trial::StartedTrial::is_pending) {
            // Waits without a thread, because the answer may never arrive.
            tokio::time::sleep(ANSWER).await;
        }
        let (netns, pod) = (Arc::clone(site.netns), Arc::clone(site.pod));
        let conclude = move || nat_trial::conclude(&netns, begun, |ip| pod.inbound.port(ip));
        let (results, _turn) = turn.work(pool.dial().await, conclude).await;
        match results {
            Ok(results) => self.note(results),
            Err(error) => {
                tracing::debug!(%error, "cannot find out where a pod's rules redirect its ports");
                false
            }
        }
    }

    /// Waits until other ports are redirected than before: tries ports after `refusals` of the kubelet's connections, and
    /// redirected ports periodically. `addresses` are the pod's.
    pub async fn next(
        &mut self,
        site: Site<'_>,
        refusals: &mut mpsc::Receiver<SocketAddr>,
        addresses: &[IpAddr],
    ) {
        let mut again = interval_at(Instant::now() + AGAIN, AGAIN);
        loop {
            let ports = tokio::select! {
                Some(first) = refusals.recv() => {
                    let mut ports = vec![first];
                    while let Ok(next) = refusals.try_recv() {
                        ports.push(next);
                    }
                    self.due(ports, Instant::now())
                }
                _ = again.tick() => self.known(addresses),
            };
            if self.try_ports(site, ports, None).await {
                return;
            }
        }
    }
}

/// The pod whose ports are tried.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// Work in its namespace.
    pub work: &'a PodWork,
    /// Its namespace.
    pub netns: &'a Arc<Netns>,
    /// The pod.
    pub pod: &'a Arc<Pod>,
}

fn pause(times: u32) -> Duration {
    FIRST_PAUSE * (1 << times.min(MAX_DOUBLINGS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address and a port")
    }

    #[test]
    fn a_port_is_tried_less_and_less_often() {
        let (mut own, start) = (OwnRedirects::default(), Instant::now());
        let port = at("10.0.0.1:80");
        let mut tries = 0;
        for second in 0..3_600 {
            tries += own
                .due([port, port], start + Duration::from_secs(second))
                .len();
        }
        assert!((10..30).contains(&tries), "{tries}");
        assert_eq!(own.due([at("[fd00::1]:80")], start).len(), 1);
    }

    #[test]
    fn a_limited_number_of_ports_is_tried_at_once() {
        let (mut own, now) = (OwnRedirects::default(), Instant::now());
        let ports = || (0..1_000).map(|port| SocketAddr::from(([10, 0, 0, 1], port)));
        assert_eq!(own.due(ports(), now).len(), AT_ONCE);
        assert_eq!(own.due(ports(), now).len(), AT_ONCE, "the next ones");
    }

    #[test]
    fn a_redirect_counts_until_a_trial_shows_that_it_is_gone() {
        let mut own = OwnRedirects::default();
        let port = at("10.0.0.1:80");
        let to = Redirection::Elsewhere(at("10.0.0.1:8080"));
        assert!(!own.note(vec![(port, Redirection::AsExpected)]));
        assert!(own.note(vec![(port, to)]));
        assert!(!own.note(vec![(port, to)]));
        assert!(!own.note(vec![(port, Redirection::Unknown)]));
        let addresses =
            ["fd00::1", "10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().expect("an address"));
        assert_eq!(own.known(&addresses), [port]);
        assert!(own.note(vec![(port, Redirection::AsExpected)]));
        assert!(own.found().is_empty());
    }
}
