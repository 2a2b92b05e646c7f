//! Follows one pod's network namespace: finds it, learns its addresses, proves the dial by canary, and
//! notices when any of that changes.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::kernel::address_watch::AddressWatch;
use crate::kernel::canary::{Canary, canary};
use crate::kernel::dial::PodDialer;
use crate::kernel::netns::{Netns, NetnsId};
use crate::kernel::nsid::Nsids;
use crate::pods::model::Pod;

/// How often to look for a namespace that is not there yet.
const SEARCH_PERIOD: Duration = Duration::from_millis(50);
/// How often to see whether the namespace at the path is still the same.
const IDENTITY_PERIOD: Duration = Duration::from_millis(250);

/// What a pod's task has to say.
#[derive(Debug)]
pub struct Event {
    /// UID of the pod.
    pub uid: String,
    /// Tells the tasks of a pod that was removed and added again apart.
    pub generation: u64,
    /// The news.
    pub news: News,
}

/// News of a pod.
#[derive(Debug)]
pub enum News {
    /// It can be served.
    Placed(Place),
    /// It cannot; why.
    Lost(String),
    /// The canary dial was repeated.
    Canary(Canary),
}

/// Where a pod lives.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its network namespace.
    pub netns: Arc<Netns>,
    /// The namespace's id as seen from the kubelet's.
    pub nsid: i32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What the canary dial showed.
    pub canary: Canary,
}

/// Follows `pod`, telling `events`, until aborted or nobody listens.
pub async fn run(pod: Arc<Pod>, generation: u64, events: mpsc::Sender<Event>) {
    let follower = Follower {
        pod,
        generation,
        events,
    };
    // Ends only when the registry is gone.
    let _ = follower.follow().await;
}

struct Follower {
    pod: Arc<Pod>,
    generation: u64,
    events: mpsc::Sender<Event>,
}

/// The registry is gone.
struct Closed;

impl Follower {
    async fn follow(&self) -> Result<(), Closed> {
        let Some(path) = self.pod.netns.clone() else {
            return self
                .tell(News::Lost(
                    "the source does not name its network namespace (annotation \
                     probe-handler.io/netns)"
                        .to_owned(),
                ))
                .await;
        };
        let mut last_trouble = String::new();
        loop {
            match open(&path) {
                Ok((netns, nsid, watch)) => {
                    last_trouble.clear();
                    let why = self.stay(&path, &netns, nsid, &watch).await?;
                    self.tell(News::Lost(why)).await?;
                }
                Err(error) => {
                    let trouble = format!("{}: {error}", path.display());
                    if trouble != last_trouble {
                        self.tell(News::Lost(trouble.clone())).await?;
                        last_trouble = trouble;
                    }
                    sleep_until(Instant::now() + SEARCH_PERIOD).await;
                }
            }
        }
    }

    /// Serves the pod from `netns` for as long as it is the one at `path`; returns why it no longer is.
    async fn stay(
        &self,
        path: &Path,
        netns: &Arc<Netns>,
        nsid: i32,
        watch: &AddressWatch,
    ) -> Result<String, Closed> {
        let dialer = PodDialer::new(Arc::clone(netns), self.pod.mesh, self.pod.proxy_uid);
        let mut attempt = 0;
        loop {
            let addresses = match pod_addresses(netns) {
                Ok(addresses) => addresses,
                Err(error) => return Ok(format!("cannot read its addresses: {error}")),
            };
            let mut result = self.canary(netns, &dialer, &addresses).await;
            let place = Place {
                netns: Arc::clone(netns),
                nsid,
                addresses: addresses.clone(),
                canary: result.clone(),
            };
            self.tell(News::Placed(place)).await?;

            let mut next_canary = Instant::now() + until_next(&result, attempt);
            let mut next_look = Instant::now() + IDENTITY_PERIOD;
            loop {
                tokio::select! {
                    changed = watch.changed() => {
                        if let Err(error) = changed {
                            return Ok(format!("cannot watch its addresses: {error}"));
                        }
                        break;
                    }
                    () = sleep_until(next_look) => {
                        next_look = Instant::now() + IDENTITY_PERIOD;
                        match NetnsId::at(path) {
                            Ok(id) if id == netns.id() => {}
                            Ok(_) => return Ok("its network namespace was replaced".to_owned()),
                            Err(error) => {
                                return Ok(format!("its network namespace is gone: {error}"));
                            }
                        }
                    }
                    () = sleep_until(next_canary) => {
                        attempt += 1;
                        let again = self.canary(netns, &dialer, &addresses).await;
                        if again != result {
                            self.tell(News::Canary(again.clone())).await?;
                            result = again;
                        }
                        next_canary = Instant::now() + until_next(&result, attempt);
                    }
                }
            }
        }
    }

    /// One canary dial for each family that the pod has: rules differ by family. Captured in one is captured.
    async fn canary(&self, netns: &Netns, dialer: &PodDialer, addresses: &[IpAddr]) -> Canary {
        let families = [
            addresses.iter().find(|ip| ip.is_ipv4()),
            addresses.iter().find(|ip| ip.is_ipv6()),
        ];
        let mut result = Canary::Unproven("it has no address yet".to_owned());
        for address in families.into_iter().flatten() {
            let one = canary(netns, dialer, *address, self.pod.mesh.inbound_port()).await;
            match one {
                Canary::Captured { .. } => return one,
                Canary::Passed => result = one,
                Canary::Unproven(_) if result != Canary::Passed => result = one,
                Canary::Unproven(_) => {}
            }
        }
        result
    }

    async fn tell(&self, news: News) -> Result<(), Closed> {
        let event = Event {
            uid: self.pod.id.uid.clone(),
            generation: self.generation,
            news,
        };
        self.events.send(event).await.map_err(|_| Closed)
    }
}

/// The addresses at which a pod may be served: its own, but never the node's, whatever a pod that may
/// configure its interfaces gives itself.
fn pod_addresses(netns: &Netns) -> io::Result<Vec<IpAddr>> {
    let node = Netns::current()?.addresses()?;
    let mut addresses = netns.addresses()?;
    addresses.retain(|address| !node.contains(address));
    Ok(addresses)
}

/// Opens the namespace and subscribes to its addresses.
fn open(path: &Path) -> io::Result<(Arc<Netns>, i32, AddressWatch)> {
    let netns = Netns::open(path)?;
    if netns.id() == Netns::current()?.id() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "this is the node's own network namespace: pods of the host network are left alone",
        ));
    }
    let nsid = Nsids::new()?.assign(&netns)?;
    let watch = AddressWatch::new(&netns)?;
    Ok((Arc::new(netns), nsid, watch))
}

/// When to try the canary again: soon while the mesh is still starting, now and then for ever, for rules
/// may change under a running pod.
fn until_next(last: &Canary, attempt: u32) -> Duration {
    match last {
        Canary::Unproven(_) => Duration::from_millis(100 << attempt.min(6)),
        Canary::Captured { .. } => Duration::from_secs(2),
        Canary::Passed => Duration::from_secs(30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unproven_canary_is_tried_again_soon_and_then_less_often() {
        let unproven = Canary::Unproven(String::new());
        assert_eq!(until_next(&unproven, 0), Duration::from_millis(100));
        assert_eq!(until_next(&unproven, 100), Duration::from_millis(6_400));
        assert_eq!(
            until_next(&Canary::Captured { port: 1 }, 9),
            Duration::from_secs(2)
        );
    }
}
