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

use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

pub use following::{Following, Placement};
pub use hierarchies::{Error as HierarchyError, find as hierarchies};
pub(super) use name::names_a_pod;
pub use process::Absence;

use crate::kernel::netns::{Netns, NetnsId};
use events::Events;
use name::Uid;
use tree::Tree;

/// Whether the kernel lets this user be told of changes in a cgroup hierarchy.
///
/// # Errors
/// Those of `inotify_init1`: EMFILE when the user has fs.inotify.max_user_instances of them.
pub fn can_watch() -> io::Result<()> {
    Events::new().map(drop)
}

/// How often to take stock of the node's cgroups when the kernel grants no more watches.
const RESCAN: Duration = Duration::from_secs(1);

/// How many pods are looked for at the same moment.
const LOOKS: usize = 16;

/// Pods can't be located.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No hierarchy.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// inotify is refused.
    #[error(
        "cannot watch the node's cgroups: if too many files are open, raise fs.inotify.max_user_instances"
    )]
    Inotify(#[source] io::Error),
    /// Our own network namespace can't be opened.
    #[error("cannot open the node's network namespace")]
    Netns(#[source] io::Error),
}

/// Finds pods' network namespaces.
pub struct Locator {
    shared: Arc<Shared>,
}

struct Shared {
    events: AsyncFd<Events>,
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
    /// [`Error::Inotify`], [`Error::Netns`].
    pub fn at(roots: Vec<PathBuf>) -> Result<Arc<Self>, Error> {
        let node = Netns::current().map_err(Error::Netns)?.id();
        let events = Events::new().map_err(Error::Inotify)?;
        // SAFETY: `Events` owns one descriptor, the same for as long as it lives.
        let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }
            .map_err(|error| Error::Inotify(error.into()))?;
        let mut tree = Tree::new(roots);
        tree.scan(events.get_ref());
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

    /// Keeps what is known as the node is, for as long as it is polled. Does not end by itself.
    pub fn keep(&self) -> impl Future<Output = ()> + Send + use<> {
        keep(Arc::clone(&self.shared))
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
async fn keep(shared: Arc<Shared>) {
    let mut was_blind = false;
    loop {
        let blind = shared.tree.lock().blind();
        if let Some(errno) = blind.filter(|_| !was_blind) {
            tracing::warn!(
                %errno,
                "the kernel refuses to watch some cgroups: pods are found up to {RESCAN:?} late; raise \
                 fs.inotify.max_user_watches"
            );
        }
        was_blind = blind.is_some();
        tokio::select! {
            ready = shared.events.readable() => {
                let Ok(mut ready) = ready else { return }; // the runtime ends
                shared.apply();
                ready.clear_ready();
            }
            () = tokio::time::sleep(RESCAN), if was_blind => {
                shared.tree.lock().scan(shared.events.get_ref());
            }
        }
    }
}

impl Shared {
    fn apply(&self) {
        let events = self.events.get_ref();
        // It does not block: `WouldBlock` ends it, and nothing else can go wrong with a buffer that holds
        // the longest event.
        while let Ok(batch) = events.read() {
            let mut tree = self.tree.lock();
            for event in &batch {
                tree.apply(events, event);
            }
        }
    }
}
