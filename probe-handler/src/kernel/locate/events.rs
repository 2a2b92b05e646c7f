//! The inotify(7) instance, and what is watched of a pod.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

/// The inotify instance, as tokio wants it.
pub struct Events(Inotify);

impl Events {
    /// An instance of its own.
    ///
    /// # Errors
    /// Those of `inotify_init1`: EMFILE when the user has fs.inotify.max_user_instances of them.
    pub fn new() -> io::Result<Self> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        Ok(Self(Inotify::init(flags)?))
    }

    /// Watches `path`.
    ///
    /// # Errors
    /// Those of `inotify_add_watch`: ENOSPC when there are as many watches as the kernel grants.
    pub fn add_watch(&self, path: &Path, mask: AddWatchFlags) -> Result<WatchDescriptor, Errno> {
        self.0.add_watch(path, mask)
    }

    /// Takes a watch off.
    ///
    /// # Errors
    /// EINVAL: the kernel has taken it off already.
    pub fn rm_watch(&self, watch: WatchDescriptor) -> Result<(), Errno> {
        self.0.rm_watch(watch)
    }

    /// What happened; `WouldBlock` when nothing did.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read(&self) -> io::Result<Vec<InotifyEvent>> {
        Ok(self.0.read_events()?)
    }
}

impl AsRawFd for Events {
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
