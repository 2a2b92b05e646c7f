//! The inotify(7) instance, if there is one, and the watches on a pod's cgroup.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The inotify instance, once there is one. Each user may have fs.inotify.max_user_instances instances, and root in a
/// container is usually the node's root: other programs may have used them up.
#[derive(Default)]
pub struct Events(OnceLock<AsyncFd<Instance>>);

/// Implements `AsRawFd`, which tokio requires.
struct Instance(Inotify);

/// Creates an inotify instance.
///
/// # Errors
/// Those of `inotify_init1`: EMFILE if the user already has fs.inotify.max_user_instances instances.
pub fn instance() -> io::Result<Inotify> {
    Ok(Inotify::init(
        InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK,
    )?)
}

impl Events {
    /// Creates the instance, if there is none yet. Requires a tokio runtime.
    ///
    /// # Errors
    /// Those of [`instance`].
    pub fn open(&self) -> io::Result<()> {
        if self.0.get().is_some() {
            return Ok(());
        }
        let instance = Instance(instance()?);
        // SAFETY: `Instance` owns one descriptor, always the same one.
        let instance = unsafe { AsyncFd::register_with_interest(instance, Interest::READABLE) }
            .map_err(io::Error::from)?;
        // If another thread was faster, its instance is used.
        let _ = self.0.set(instance);
        Ok(())
    }

    /// Whether there is an instance.
    pub fn is_available(&self) -> bool {
        self.0.get().is_some()
    }

    /// Watches `path`.
    ///
    /// # Errors
    /// Those of `inotify_add_watch`: ENOSPC if the kernel's limit on watches is reached. EMFILE if there is no
    /// instance.
    pub fn add_watch(&self, path: &Path, mask: AddWatchFlags) -> Result<WatchDescriptor, Errno> {
        match self.0.get() {
            Some(instance) => instance.get_ref().0.add_watch(path, mask),
            None => Err(Errno::EMFILE),
        }
    }

    /// Removes a watch.
    ///
    /// # Errors
    /// EINVAL: the kernel has already removed it.
    pub fn rm_watch(&self, watch: WatchDescriptor) -> Result<(), Errno> {
        match self.0.get() {
            Some(instance) => instance.get_ref().0.rm_watch(watch),
            None => Ok(()),
        }
    }

    /// Waits for events, and passes each batch of them to `apply`; waits forever if there is no instance.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn next(&self, mut apply: impl FnMut(&[InotifyEvent])) -> io::Result<()> {
        let Some(instance) = self.0.get() else {
            return std::future::pending().await;
        };
        let mut ready = instance.readable().await?;
        // The descriptor is non-blocking: `WouldBlock` ends the loop. No other error is possible, because the buffer
        // holds the longest event.
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

/// Watches a pod's cgroup. Must be called without the tree's lock: while another pod's cgroup is being
/// created, the kernel may block this call for tens of milliseconds.
///
/// # Errors
/// The kernel's limit on watches is reached.
pub fn watch_pod(events: &Events, dir: &Path) -> Result<Vec<WatchDescriptor>, Errno> {
    // Containers' cgroups are created in this directory; and cgroup v2 reports when the first process enters
    // any of them (`populated`, Documentation/admin-guide/cgroup-v2.rst).
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
