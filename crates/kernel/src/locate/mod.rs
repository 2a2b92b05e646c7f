//! Finds a pod's network namespace by the pod's UID, through the processes in the pod's cgroup.
//!
//! One [`Locator`] per daemon keeps track of which pods have cgroups (`tree`); one [`Following`] per pod
//! waits until a process appears there (`process`), and then until that process ends. So a running pod
//! costs one process descriptor, and cgroups are only watched for pods whose namespace is not found yet.

mod events;
mod following;
mod hierarchies;
pub(crate) mod name;
mod process;
mod tree;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::InotifyEvent;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use following::{Following, Placement};
pub use hierarchies::{Error as HierarchyError, find as hierarchies};
pub(super) use name::names_a_pod;
pub use process::NotFound;

use crate::netns::Netns;
use events::Events;
use model::netns::NetnsId;
use name::Uid;
use support::missing::{Missing, Part};
use tree::Tree;

/// Checks that this user can watch cgroup hierarchies by inotify.
///
/// # Errors
/// Those of `inotify_init1`: EMFILE if the user already has fs.inotify.max_user_instances instances.
pub fn can_watch() -> io::Result<()> {
    events::instance().map(drop)
}

/// How often to scan the node's cgroups while inotify does not cover all of them.
const RESCAN: Duration = Duration::from_millis(80);
/// Scans take at most one part in `RESCAN_SHARE` of the time.
const RESCAN_SHARE: u32 = 20;
/// How often to retry after the kernel refused an inotify instance or a watch.
const RETRY: Duration = Duration::from_secs(5);

/// How many pods are searched for at the same time.
const LOOKS: usize = 16;

/// Pods can't be located.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cgroup hierarchy is usable.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// The daemon's own network namespace can't be opened.
    #[error("cannot open the node's network namespace")]
    Netns(#[source] io::Error),
}

/// Finds pods' network namespaces.
pub struct Locator {
    shared: Arc<Shared>,
}

struct Shared {
    events: Events,
    tree: Mutex<Tree>,
    node: NetnsId,
    /// Limits how many threads search at the same time.
    looks: Arc<Semaphore>,
}

impl Locator {
    /// Scans the node's cgroups and watches them. `cgroup_root` is a directory of a cgroup file system, or
    /// one below which cgroup file systems are mounted; `None`: all mounted ones are used. The calling
    /// thread's network namespace counts as the node's. Requires a tokio runtime.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn new(cgroup_root: Option<&Path>) -> Result<Arc<Self>, Error> {
        Self::at(hierarchies::find(cgroup_root)?)
    }

    /// Like [`Locator::new`], given one directory for each hierarchy.
    ///
    /// # Errors
    /// [`Error::Netns`].
    pub fn at(roots: Vec<PathBuf>) -> Result<Arc<Self>, Error> {
        let node = Netns::current().map_err(Error::Netns)?.id();
        let events = Events::default();
        // If this fails, `keep` reports it and retries.
        let _ = events.open();
        let mut tree = Tree::new(roots);
        tree.scan(&events);
        let (watches, pods) = tree.size();
        tracing::debug!(watches, pods, "scanned the node's cgroups");
        let shared = Arc::new(Shared {
            events,
            tree: Mutex::new(tree),
            node,
            looks: Arc::new(Semaphore::new(LOOKS)),
        });
        Ok(Arc::new(Self { shared }))
    }

    /// Keeps the known cgroups up to date while it is polled. Never completes. Without inotify for all cgroups, records
    /// that in `missing` and scans periodically.
    pub fn keep(&self, missing: Missing) -> impl Future<Output = ()> + Send + use<> {
        keep(Arc::clone(&self.shared), missing)
    }

    /// Follows the pod whose UID in the kubelet is `uid`. It receives changes while [`Locator::keep`] runs.
    pub fn follow(&self, uid: &str) -> Following {
        Following::new(Arc::clone(&self.shared), Uid::new(uid))
    }

    /// The number of watches, and the number of pods with a known cgroup.
    pub fn size(&self) -> (usize, usize) {
        self.shared.tree.lock().size()
    }
}

/// Keeps the tree up to date.
async fn keep(shared: Arc<Shared>, missing: Missing) {
    let mut retried = Instant::now();
    let mut next = Instant::now() + RESCAN;
    // When a watch was last refused. Watches on a searched pod's cgroup are added by each search, not by each scan.
    let mut refused: Option<Instant> = None;
    loop {
        let blind = shared.tree.lock().blind();
        match blind {
            Some(errno) => {
                refused = Some(Instant::now());
                missing.note(Part::CgroupWatch, &why_blind(&shared.events, errno));
            }
            None if refused.is_some_and(|at| at.elapsed() < RETRY) => {}
            None => {
                refused = None;
                missing.clear(Part::CgroupWatch);
            }
        }
        tokio::select! {
            applied = shared.events.next(|batch| shared.apply(batch)) => {
                if applied.is_err() {
                    return; // the runtime is shutting down
                }
            }
            () = tokio::time::sleep_until(next), if refused.is_some() => {
                if retried.elapsed() >= RETRY {
                    retried = Instant::now();
                    // If it is still refused, the scan detects that.
                    let _ = shared.events.open();
                }
                let begun = Instant::now();
                shared.tree.lock().scan(&shared.events);
                next = Instant::now() + RESCAN.max(begun.elapsed() * RESCAN_SHARE);
            }
        }
    }
}

/// Why inotify does not cover all cgroups, and what to do.
fn why_blind(events: &Events, errno: Errno) -> String {
    let limit = match events.is_available() {
        true => "max_user_watches",
        false => "max_user_instances",
    };
    format!(
        "the kernel refuses inotify watches on the node's cgroups ({errno}): scanning them every {RESCAN:?} instead, \
         so pods are found that much later; raise fs.inotify.{limit}, or find the program of the same user that uses \
         up this limit"
    )
}

impl Shared {
    fn apply(&self, batch: &[InotifyEvent]) {
        let mut tree = self.tree.lock();
        for event in batch {
            tree.apply(&self.events, event);
        }
    }
}
