//! The inotify(7) instance, if there is one, and what is watched of a pod.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The inotify instance, once there is one. The kernel grants fs.inotify.max_user_instances to each user, and the
/// root of a container is the node's as a rule: other programs may have used them up.
#[derive(Default)]
pub struct Events(OnceLock<AsyncFd<Instance>>);

/// As tokio wants it.
struct Instance(Inotify);

/// An inotify instance.
///
/// # Errors
/// Those of `inotify_init1`: EMFILE when the user has fs.inotify.max_user_instances of them.
pub fn instance() -> io::Result<Inotify> {
    Ok(Inotify::init(
        InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK,
    )?)
}

impl Events {
    /// Gets an instance, if there is none yet. Needs tokio's runtime.
    ///
    /// # Errors
    /// Those of [`instance`].
    pub fn open(&self) -> io::Result<()> {
        if self.0.get().is_some() {
            return Ok(());
        }
        let instance = Instance(instance()?);
        // SAFETY: `Instance` owns one descriptor, the same for as long as it lives.
        let instance = unsafe { AsyncFd::register_with_interest(instance, Interest::READABLE) }
            .map_err(io::Error::from)?;
        // Whoever was quicker has opened one as good.
        let _ = self.0.set(instance);
        Ok(())
    }

    /// Whether there is an instance.
    pub fn are_told(&self) -> bool {
        self.0.get().is_some()
    }

    /// Watches `path`.
    ///
    /// # Errors
    /// Those of `inotify_add_watch`: ENOSPC when there are as many watches as the kernel grants. EMFILE: there is no
    /// instance.
    pub fn add_watch(&self, path: &Path, mask: AddWatchFlags) -> Result<WatchDescriptor, Errno> {
        match self.0.get() {
            Some(instance) => instance.get_ref().0.add_watch(path, mask),
            None => Err(Errno::EMFILE),
        }
    }

    /// Takes a watch off.
    ///
    /// # Errors
    /// EINVAL: the kernel has taken it off already.
    pub fn rm_watch(&self, watch: WatchDescriptor) -> Result<(), Errno> {
        match self.0.get() {
            Some(instance) => instance.get_ref().0.rm_watch(watch),
            None => Ok(()),
        }
    }

    /// Waits until something happens, and gives each batch of it to `apply`; for ever where there is no instance.
    ///
    /// # Errors
    /// The runtime ends.
    pub async fn next(&self, mut apply: impl FnMut(&[InotifyEvent])) -> io::Result<()> {
        let Some(instance) = self.0.get() else {
            return std::future::pending().await;
        };
        let mut ready = instance.readable().await?;
        // It does not block: `WouldBlock` ends it, and nothing else can go wrong with a buffer that holds the longest
        // event.
        while let Ok(batch) = instance.get_ref().0.read_events() {
            apply(&batch);
        }
        ready.clear_ready();
        Ok(())
    }
}

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches a pod's cgroup. To be called without the tree's lock: while another pod's cgroup is being
/// made, the kernel may keep us waiting for tens of milliseconds.
///
/// # Errors
/// When there are as many watches as the kernel grants.
pub fn watch_pod(events: &Events, dir: &Path) -> Result<Vec<WatchDescriptor>, Errno> {
    // Containers' cgroups are created here; and version 2 says when the first process comes into any of
    // them (`populated`, Documentation/admin-guide/cgroup-v2.rst).
    let targets = [
        (
            dir.to_owned(),
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR,
        ),
        (dir.join("cgroup.events"), AddWatchFlags::IN_MODIFY),
    ];
    let mut watches = Vec::new();
    for (path, mask) in targets {
        match events.add_watch(&path, mask) {
            Ok(watch) => watches.push(watch),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) if watches.is_empty() => return Err(errno),
            Err(_) => {}
        }
    }
    Ok(watches)
}
