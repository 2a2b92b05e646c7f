//! From a pod's UID to its network namespace, by the processes in the pod's cgroup.
//!
//! One [`Locator`] for the daemon knows which pods have cgroups (`tree`); a [`Following`] for each pod
//! waits there until a process shows up (`process`), and then for that process to end. So a pod that
//! runs costs one process descriptor, and only a pod that is looked for has its cgroups watched.

mod events;
mod following;
mod hierarchies;
mod name;
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

/// Whether the kernel lets this user be told of changes in a cgroup hierarchy.
///
/// # Errors
/// Those of `inotify_init1`: EMFILE when the user has fs.inotify.max_user_instances of them.
pub fn can_watch() -> io::Result<()> {
    events::instance().map(drop)
}

/// How often to take stock of the node's cgroups while the kernel does not tell of changes in all of them.
const RESCAN: Duration = Duration::from_millis(80);
/// A share of the time at most is spent on that: one in so many.
const RESCAN_SHARE: u32 = 20;
/// How often to ask for an inotify instance, or for more watches, again.
const AGAIN: Duration = Duration::from_secs(5);

/// How many pods are looked for at the same moment.
const LOOKS: usize = 16;

/// Pods can't be located.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No hierarchy.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// Our own network namespace can't be opened.
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
    /// Bounds the threads that look at once.
    looks: Arc<Semaphore>,
}

impl Locator {
    /// Takes stock of the node's cgroups and watches them. `cgroup_root` is a directory of
    /// a cgroup file system, or one below which they are mounted; none: wherever they are mounted. The
    /// calling thread's network namespace is taken for the node's. Needs tokio's runtime.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(cgroup_root: Option<&Path>) -> Result<Arc<Self>, Error> {
        Self::at(hierarchies::find(cgroup_root)?)
    }

    /// As [`Locator::new`], with one directory for each hierarchy.
    ///
    /// # Errors
    /// [`Error::Netns`].
    pub fn at(roots: Vec<PathBuf>) -> Result<Arc<Self>, Error> {
        let node = Netns::current().map_err(Error::Netns)?.id();
        let events = Events::default();
        // Where it is refused, `keep` says so and tries again.
        let _ = events.open();
        let mut tree = Tree::new(roots);
        tree.scan(&events);
        let (watches, pods) = tree.size();
        tracing::debug!(watches, pods, "took stock of the node's cgroups");
        let shared = Arc::new(Shared {
            events,
            tree: Mutex::new(tree),
            node,
            looks: Arc::new(Semaphore::new(LOOKS)),
        });
        Ok(Arc::new(Self { shared }))
    }

    /// Keeps what is known as the node is, for as long as it is polled. Does not end by itself. Where the kernel does
    /// not tell of changes, that is noted in `missing`, and looked for.
    pub fn keep(&self, missing: Missing) -> impl Future<Output = ()> + Send + use<> {
        keep(Arc::clone(&self.shared), missing)
    }

    /// Follows the pod that the kubelet knows as `uid`. It learns of changes while [`Locator::keep`] runs.
    pub fn follow(&self, uid: &str) -> Following {
        Following::new(Arc::clone(&self.shared), Uid::new(uid))
    }

    /// How many watches there are, and of how many pods a cgroup is known.
    pub fn size(&self) -> (usize, usize) {
        self.shared.tree.lock().size()
    }
}

/// Keeps the tree as the node is.
async fn keep(shared: Arc<Shared>, missing: Missing) {
    let mut asked = Instant::now();
    let mut next = Instant::now() + RESCAN;
    // When a watch was last refused: the one of a pod that is looked for is asked for at each look, not at each scan.
    let mut refused: Option<Instant> = None;
    loop {
        let blind = shared.tree.lock().blind();
        match blind {
            Some(errno) => {
                refused = Some(Instant::now());
                missing.note(Part::CgroupWatch, &why_blind(&shared.events, errno));
            }
            None if refused.is_some_and(|at| at.elapsed() < AGAIN) => {}
            None => {
                refused = None;
                missing.clear(Part::CgroupWatch);
            }
        }
        tokio::select! {
            told = shared.events.next(|batch| shared.apply(batch)) => {
                if told.is_err() {
                    return; // the runtime ends
                }
            }
            () = tokio::time::sleep_until(next), if refused.is_some() => {
                if asked.elapsed() >= AGAIN {
                    asked = Instant::now();
                    // Where it is still refused, the scan finds out.
                    let _ = shared.events.open();
                }
                let begun = Instant::now();
                shared.tree.lock().scan(&shared.events);
                next = Instant::now() + RESCAN.max(begun.elapsed() * RESCAN_SHARE);
            }
        }
    }
}

/// Why the kernel does not tell of all changes, and what to do.
fn why_blind(events: &Events, errno: Errno) -> String {
    let limit = match events.are_told() {
        true => "max_user_watches",
        false => "max_user_instances",
    };
    format!(
        "the kernel does not watch all of the node's cgroups ({errno}): they are looked at every {RESCAN:?} instead, \
         and pods are found that much later; raise fs.inotify.{limit}, or find out which program of the same user \
         uses them up"
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
