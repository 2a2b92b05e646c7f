//! Follows one pod's network namespace: finds it, learns its addresses, proves the dial by canary, and
//! notices when any of that changes.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::kernel_path::{self, Keeping, KernelPath};
use crate::kernel::address_watch::AddressWatch;
use crate::kernel::addresses::{self, Routes};
use crate::kernel::canary::{Canary, canary};
use crate::kernel::dial::PodDialer;
use crate::kernel::locate::{Locator, Placement};
use crate::kernel::netns::{Netns, NetnsId};
use crate::kernel::nsid::Nsids;
use crate::pods::model::Pod;

/// How often to look for a namespace that is not there yet.
const SEARCH_PERIOD: Duration = Duration::from_millis(50);
/// How often to see whether the namespace at the path is still the same.
const IDENTITY_PERIOD: Duration = Duration::from_millis(250);

/// When addresses are read again of which it is not known whose they are.
const UNSURE_PERIOD: Duration = Duration::from_secs(1);

/// How many addresses of a pod are looked at: those who may configure its interfaces can make any number.
const ADDRESSES: usize = 1024;
/// How many changes of a pod's addresses are followed at once in a second.
const CHANGES: u32 = 16;

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
    /// Which path serves it is known, or has changed.
    Path(kernel_path::Path),
}

/// Where a pod lives.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its network namespace.
    pub netns: Arc<Netns>,
    /// See [`crate::pods::registry::Placement`].
    pub sandbox: u64,
    /// The namespace's id as seen from the kubelet's.
    pub nsid: i32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What the canary dial showed.
    pub canary: Canary,
    /// Which path serves it, if that is known already.
    pub path: Option<kernel_path::Path>,
}

/// Follows `pod`, telling `events`, until aborted or nobody listens.
pub async fn run(
    pod: Arc<Pod>,
    generation: u64,
    locator: Arc<Locator>,
    kernel_path: Option<Arc<KernelPath>>,
    events: mpsc::Sender<Event>,
) {
    let follower = Follower {
        pod,
        generation,
        kernel_path,
        events,
    };
    // Ends only when the registry is gone.
    let _ = match &follower.pod.netns {
        Some(path) => follower.follow_path(path).await,
        None => follower.follow_cgroup(&locator).await,
    };
}

struct Follower {
    pod: Arc<Pod>,
    generation: u64,
    kernel_path: Option<Arc<KernelPath>>,
    events: mpsc::Sender<Event>,
}

/// The registry is gone.
struct Closed;

impl Follower {
    /// Follows what is at `path`.
    async fn follow_path(&self, path: &Path) -> Result<(), Closed> {
        let mut last_trouble = String::new();
        let mut sandbox = 0;
        loop {
            match Netns::open(path).and_then(not_the_nodes) {
                Ok(netns) => {
                    last_trouble.clear();
                    let id = netns.id();
                    let why = tokio::select! {
                        closed = self.serve(Arc::new(netns), sandbox) => return closed,
                        why = replaced(path, id) => why,
                    };
                    sandbox += 1;
                    self.tell(News::Lost(why)).await?;
                }
                Err(error) => {
                    if error.kind() == io::ErrorKind::NotFound {
                        sandbox += 1;
                    }
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

    /// Follows the processes in the pod's cgroup.
    async fn follow_cgroup(&self, locator: &Locator) -> Result<(), Closed> {
        let mut following = locator.follow(&self.pod.id.uid);
        let mut placement = following.next().await;
        let mut sandbox = 0;
        loop {
            placement = match placement {
                Placement::In(netns) => {
                    sandbox += 1;
                    tokio::select! {
                        closed = self.serve(netns, sandbox) => return closed,
                        next = following.next() => next,
                    }
                }
                Placement::Nowhere(why) => {
                    self.tell(News::Lost(why.to_string())).await?;
                    following.next().await
                }
            };
        }
    }

    /// Serves the pod from `netns` for ever, through whatever trouble there is.
    async fn serve(&self, netns: Arc<Netns>, sandbox: u64) -> Result<(), Closed> {
        let mut last_trouble = String::new();
        loop {
            let trouble = match subscribe(&netns) {
                Ok((nsid, watch)) => {
                    last_trouble.clear();
                    self.stay(&netns, sandbox, nsid, &watch).await?
                }
                Err(error) => format!("its network namespace cannot be used: {error}"),
            };
            if trouble != last_trouble {
                self.tell(News::Lost(trouble.clone())).await?;
                last_trouble = trouble;
            }
            sleep_until(Instant::now() + SEARCH_PERIOD).await;
        }
    }

    /// Serves the pod from `netns` for as long as that can be done; returns why it no longer can.
    async fn stay(
        &self,
        netns: &Arc<Netns>,
        sandbox: u64,
        nsid: i32,
        watch: &AddressWatch,
    ) -> Result<String, Closed> {
        let mut pace = Pace::new();
        let dialer = PodDialer::new(Arc::clone(netns), self.pod.mesh, self.pod.proxy_uid);
        let mut attempt = 0;
        loop {
            let (addresses, all) = match pod_addresses(netns) {
                Ok(read) => read,
                Err(error) => return Ok(format!("cannot read its addresses: {error}")),
            };
            let mut result = self.canary(netns, &dialer, &addresses).await;
            let mut kept = self
                .kernel_path
                .as_deref()
                .map(|kernel_path| kernel_path.keep(netns, &addresses));
            let path = match kept.as_mut().filter(|kept| kept.comes_first()) {
                Some(kept) => Some(kept.next().await),
                None => None,
            };
            let place = Place {
                netns: Arc::clone(netns),
                sandbox,
                nsid,
                addresses: addresses.clone(),
                canary: result.clone(),
                path,
            };
            self.tell(News::Placed(place)).await?;

            let mut next_canary = Instant::now() + until_next(&result, attempt);
            let unsure = sleep_until(Instant::now() + UNSURE_PERIOD);
            tokio::pin!(unsure);
            let path = self.keep_kernel_path(kept);
            tokio::pin!(path);
            loop {
                tokio::select! {
                    closed = &mut path => return Err(closed),
                    changed = watch.changed() => {
                        if let Err(error) = changed {
                            return Ok(format!("cannot watch its addresses: {error}"));
                        }
                        pace.wait().await;
                        break;
                    }
                    () = &mut unsure, if !all => break,
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
            let one = canary(netns, dialer, *address, self.pod.inbound.port(*address)).await;
            match one {
                Canary::Captured { .. } => return one,
                Canary::Passed => result = one,
                Canary::Unproven(_) if result != Canary::Passed => result = one,
                Canary::Unproven(_) => {}
            }
        }
        result
    }

    /// Keeps the pod's kernel path, where there is one to be kept, until the registry is gone.
    async fn keep_kernel_path(&self, kept: Option<Keeping<'_>>) -> Closed {
        let Some(mut kept) = kept else {
            return std::future::pending().await;
        };
        loop {
            let path = kept.next().await;
            if let Err(closed) = self.tell(News::Path(path)).await {
                return closed;
            }
        }
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
/// configure its interfaces gives itself; and whether that could be told of all of them.
fn pod_addresses(netns: &Netns) -> io::Result<(Vec<IpAddr>, bool)> {
    let mut addresses = addresses::of_interfaces(netns)?;
    addresses.truncate(ADDRESSES);
    let routes = Routes::new()?;
    let mut all = true;
    addresses.retain(|address| match routes.is_local(*address) {
        Ok(is_local) => !is_local,
        Err(error) => {
            tracing::debug!(%address, %error, "whether this is the node's own address is not known: left alone");
            all = false;
            false
        }
    });
    Ok((addresses, all))
}

/// Keeps a pod that changes its addresses all the time from keeping us busy: the first changes of a second
/// are followed at once, more of them when it is over.
struct Pace {
    since: Instant,
    changes: u32,
}

impl Pace {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            changes: 0,
        }
    }

    async fn wait(&mut self) {
        if self.changes >= CHANGES {
            sleep_until(self.since + Duration::from_secs(1)).await;
        }
        if self.since.elapsed() >= Duration::from_secs(1) {
            *self = Self::new();
        }
        self.changes += 1;
    }
}

/// Refuses the node's own namespace.
fn not_the_nodes(netns: Netns) -> io::Result<Netns> {
    if netns.id() == Netns::current()?.id() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "this is the node's own network namespace: pods of the host network are left alone",
        ));
    }
    Ok(netns)
}

/// The namespace's id as seen from the kubelet's, and a subscription to its addresses.
fn subscribe(netns: &Netns) -> io::Result<(i32, AddressWatch)> {
    let nsid = Nsids::new()?.assign(netns)?;
    Ok((nsid, AddressWatch::new(netns)?))
}

/// Waits until the namespace at `path` is no longer `id`; returns what happened to it.
async fn replaced(path: &Path, id: NetnsId) -> String {
    loop {
        sleep_until(Instant::now() + IDENTITY_PERIOD).await;
        match NetnsId::at(path) {
            Ok(at) if at == id => {}
            Ok(_) => return "its network namespace was replaced".to_owned(),
            Err(error) => return format!("its network namespace is gone: {error}"),
        }
    }
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

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_changes_its_addresses_all_the_time_is_followed_at_a_pace() {
        let (mut pace, begun) = (Pace::new(), Instant::now());
        for _ in 0..CHANGES {
            pace.wait().await;
        }
        assert_eq!(
            begun.elapsed(),
            Duration::ZERO,
            "the first are followed at once"
        );
        for _ in 0..10 * CHANGES {
            pace.wait().await;
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        // One that has calmed down is followed at once again.
        tokio::time::advance(Duration::from_secs(5)).await;
        let calm = Instant::now();
        pace.wait().await;
        assert_eq!(calm.elapsed(), Duration::ZERO);
    }

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
