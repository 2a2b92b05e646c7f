//! Tracks which pods' cgroups exist on the node by inotify(7): watches the directories in which pods'
//! cgroups are created, those in which such directories may be created, and the cgroups of pods that are
//! being searched for.
//!
//! Removing a cgroup does not remove the watches on it, unlike a file on other file systems: the watch is
//! removed when the parent directory reports the removal.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InotifyEvent, WatchDescriptor};
use tokio::sync::watch;

use super::events::Events;
use super::name::{Kind, Uid, kind};

/// The maximum number of directories between a hierarchy's root and `kubepods`: kind and k3d run the
/// kubelet in `/docker/<id>/kubelet`, systemd has `/a.slice/a-b.slice`.
const MAX_ABOVE: usize = 3;

/// The known cgroups of the node.
pub struct Tree {
    roots: Vec<Root>,
    watches: HashMap<WatchDescriptor, Watch>,
    /// The watched directories in which pods' cgroups, or such directories, are created.
    by_path: BTreeMap<PathBuf, WatchDescriptor>,
    /// The cgroups of each pod, with their hierarchy as an index into `roots`.
    pods: HashMap<Uid, BTreeSet<(usize, PathBuf)>>,
    wanted: HashMap<Uid, Wanted>,
    /// Set if the kernel refused a watch: events are incomplete.
    blind: Option<Errno>,
}

/// The top of a hierarchy.
struct Root {
    path: PathBuf,
    /// Whether this is cgroup v2.
    unified: bool,
}

/// The purpose of a watch.
enum Watch {
    /// A directory in which pods' cgroups, or such directories, are created.
    Dir {
        path: PathBuf,
        root: usize,
        place: Place,
    },
    /// The cgroup of a wanted pod.
    Pod(Uid),
}

/// The position of a watched directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Above `kubepods`, that many steps below the root of the hierarchy.
    Above(usize),
    /// `kubepods` or a QoS class in it.
    Pods,
}

/// A pod that is being searched for.
struct Wanted {
    /// The number of searches.
    by: usize,
    changes: watch::Sender<()>,
    watches: BTreeMap<PathBuf, Vec<WatchDescriptor>>,
}

impl Tree {
    /// An empty tree; [`Tree::scan`] must follow.
    pub fn new(roots: Vec<PathBuf>) -> Self {
        let root = |path: PathBuf| Root {
            unified: path.join("cgroup.controllers").exists(),
            path,
        };
        let mut roots: Vec<Root> = roots.into_iter().map(root).collect();
        // Version 2 first, because it reports more.
        roots.sort_by_key(|root| !root.unified);
        Self {
            roots,
            watches: HashMap::new(),
            by_path: BTreeMap::new(),
            pods: HashMap::new(),
            wanted: HashMap::new(),
            blind: None,
        }
    }

    /// Scans all hierarchies, and watches them from then on. Notifies the searches for a pod whose cgroups have
    /// changed.
    pub fn scan(&mut self, events: &Events) {
        self.blind = None;
        let mut changed = Vec::new();
        self.pods.retain(|uid, dirs| {
            let before = dirs.len();
            dirs.retain(|(_, dir)| dir.exists());
            if dirs.len() < before {
                changed.push(uid.clone());
            }
            !dirs.is_empty()
        });
        for uid in changed {
            self.notify(&uid);
        }
        let gone: Vec<PathBuf> = self
            .by_path
            .keys()
            .filter(|path| !path.exists())
            .cloned()
            .collect();
        for path in gone {
            self.unwatch_dir(events, &path);
        }
        for root in 0..self.roots.len() {
            let path = self.roots[root].path.clone();
            self.add_dir(events, &path, root, Place::Above(0));
        }
    }

    /// Why events are incomplete, if they are.
    pub fn blind(&self) -> Option<Errno> {
        self.blind
    }

    /// The cgroups of a pod, one or more in each hierarchy.
    pub fn of_pod(&self, uid: &Uid) -> Vec<PathBuf> {
        let dirs = self.pods.get(uid).into_iter().flatten();
        dirs.map(|(_, dir)| dir.clone()).collect()
    }

    /// The pod's cgroups in one hierarchy of each version: kubelet and runtime treat all hierarchies of version 1 alike.
    pub fn first_of_pod(&self, uid: &Uid) -> Vec<PathBuf> {
        let Some(dirs) = self.pods.get(uid) else {
            return Vec::new();
        };
        let first = |unified: bool| {
            let mut roots = dirs.iter().map(|(root, _)| *root);
            roots.find(|root| self.roots[*root].unified == unified)
        };
        let roots = [first(true), first(false)];
        let dirs = dirs.iter().filter(|(root, _)| roots.contains(&Some(*root)));
        dirs.map(|(_, dir)| dir.clone()).collect()
    }

    /// Begins a search for a pod: from now on the receiver is notified of changes in [`Tree::first_of_pod`], which
    /// [`watch_pod`](super::events::watch_pod) watches.
    pub fn want(&mut self, uid: &Uid) -> watch::Receiver<()> {
        let wanted = self.wanted.entry(uid.clone()).or_insert_with(|| Wanted {
            by: 0,
            changes: watch::Sender::new(()),
            watches: BTreeMap::new(),
        });
        wanted.by += 1;
        wanted.changes.subscribe()
    }

    /// Whether the pod is being searched for and its cgroup `dir` is not watched yet.
    pub fn is_to_watch(&self, uid: &Uid, dir: &Path) -> bool {
        let wanted = self.wanted.get(uid);
        wanted.is_some_and(|wanted| !wanted.watches.contains_key(dir))
    }

    /// Records the result of [`watch_pod`](super::events::watch_pod).
    pub fn watched(
        &mut self,
        events: &Events,
        uid: &Uid,
        dir: &Path,
        watches: Result<Vec<WatchDescriptor>, Errno>,
    ) {
        let watches = watches.unwrap_or_else(|errno| {
            self.blind = Some(errno);
            Vec::new()
        });
        // The search may have ended meanwhile.
        let Some(wanted) = self.wanted.get_mut(uid) else {
            for watch in watches {
                self.unwatch(events, watch);
            }
            return;
        };
        for watch in &watches {
            let _ = self.watches.insert(*watch, Watch::Pod(uid.clone()));
        }
        if !watches.is_empty() {
            wanted
                .watches
                .entry(dir.to_owned())
                .or_default()
                .extend(watches);
        }
    }

    /// Ends a search that [`Tree::want`] began.
    pub fn release(&mut self, events: &Events, uid: &Uid) {
        let Some(wanted) = self.wanted.get_mut(uid) else {
            return;
        };
        wanted.by -= 1;
        if wanted.by == 0
            && let Some(wanted) = self.wanted.remove(uid)
        {
            for watch in wanted.watches.into_values().flatten() {
                self.unwatch(events, watch);
            }
        }
    }

    /// How many directories are watched, and how many pods' cgroups are known.
    pub fn size(&self) -> (usize, usize) {
        (self.watches.len(), self.pods.len())
    }

    /// Applies an event.
    pub fn apply(&mut self, events: &Events, event: &InotifyEvent) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.scan(events);
            // Events in their cgroups were lost too.
            for wanted in self.wanted.values() {
                wanted.changes.send_replace(());
            }
            return;
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            if let Some(Watch::Dir { path, .. }) = self.watches.remove(&event.wd)
                && self.by_path.get(&path) == Some(&event.wd)
            {
                let _ = self.by_path.remove(&path);
            }
            return;
        }
        let (path, root, place) = match self.watches.get(&event.wd) {
            Some(Watch::Dir { path, root, place }) => (path, *root, *place),
            Some(Watch::Pod(uid)) => {
                let uid = uid.clone();
                self.notify(&uid);
                return;
            }
            None => return,
        };
        let Some(name) = event
            .name
            .as_deref()
            .filter(|_| event.mask.contains(AddWatchFlags::IN_ISDIR))
        else {
            return;
        };
        let path = path.join(name);
        if event.mask.contains(AddWatchFlags::IN_CREATE) {
            self.add_child(events, &path, name, root, place);
        } else {
            self.remove_child(events, &path, name, root, place);
        }
    }

    fn add_dir(&mut self, events: &Events, path: &Path, root: usize, place: Place) {
        let mask = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
        match events.add_watch(path, mask) {
            Ok(wd) => self.dir_watched(events, path, root, place, wd),
            Err(Errno::ENOENT | Errno::ENOTDIR) => return,
            // Its current contents are read below anyway.
            Err(errno) => self.blind = Some(errno),
        }
        // Finds what existed before the watch; what was created since is also reported as an event, which does no harm.
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.add_child(events, &entry.path(), &entry.file_name(), root, place);
            }
        }
    }

    fn add_child(&mut self, events: &Events, path: &Path, name: &OsStr, root: usize, place: Place) {
        // Other users may create cgroups below delegated ones (systemd's `Delegate=`): a name like a pod's means nothing there.
        if !is_ours(path) {
            return;
        }
        match (child(name, place), place) {
            (Kind::Pods, _) => self.add_dir(events, path, root, Place::Pods),
            (Kind::Pod(uid), _) => {
                let dirs = self.pods.entry(uid.clone()).or_default();
                let new = dirs.insert((root, path.to_owned()));
                if new
                    && self.wanted.contains_key(&uid)
                    && self.first_of_pod(&uid).iter().any(|first| first == path)
                {
                    self.notify(&uid);
                }
            }
            (Kind::Other, Place::Above(depth)) if depth < MAX_ABOVE => {
                self.add_dir(events, path, root, Place::Above(depth + 1));
            }
            (Kind::Other, _) => {}
        }
    }

    fn remove_child(
        &mut self,
        events: &Events,
        path: &Path,
        name: &OsStr,
        root: usize,
        place: Place,
    ) {
        let Kind::Pod(uid) = child(name, place) else {
            self.unwatch_dir(events, path);
            return;
        };
        if let Some(dirs) = self.pods.get_mut(&uid) {
            let _ = dirs.remove(&(root, path.to_owned()));
            if dirs.is_empty() {
                let _ = self.pods.remove(&uid);
            }
        }
        if let Some(wanted) = self.wanted.get_mut(&uid) {
            for watch in wanted.watches.remove(path).unwrap_or_default() {
                self.unwatch(events, watch);
            }
            self.notify(&uid);
        }
    }

    fn dir_watched(
        &mut self,
        events: &Events,
        path: &Path,
        root: usize,
        place: Place,
        wd: WatchDescriptor,
    ) {
        if let Some(old) = self.by_path.insert(path.to_owned(), wd)
            && old != wd
        {
            self.unwatch(events, old);
        }
        let path = path.to_owned();
        let _ = self.watches.insert(wd, Watch::Dir { path, root, place });
    }

    fn unwatch_dir(&mut self, events: &Events, path: &Path) {
        if let Some(wd) = self.by_path.remove(path) {
            self.unwatch(events, wd);
        }
    }

    fn unwatch(&mut self, events: &Events, wd: WatchDescriptor) {
        let _ = self.watches.remove(&wd);
        // EINVAL: the kernel has already removed it.
        let _ = events.rm_watch(wd);
    }

    fn notify(&self, uid: &Uid) {
        if let Some(wanted) = self.wanted.get(uid) {
            wanted.changes.send_replace(());
        }
    }
}

/// Whether the directory belongs to this process's user, like those of the kubelet and the runtime.
/// Directories that belong to a container's user namespace are below a pod's cgroup, where this is not checked.
fn is_ours(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|dir| dir.uid() == nix::unistd::geteuid().as_raw())
}

fn child(name: &OsStr, place: Place) -> Kind {
    name.to_str()
        .map_or(Kind::Other, |name| kind(name, place == Place::Pods))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const UID: &str = "3f2e1d0c-1111-2222-3333-444455556666";

    fn pod(root: &Path, uid: &str) -> PathBuf {
        let dir = root.join("kubelet/kubepods").join(format!("pod{uid}"));
        fs::create_dir_all(&dir).expect("made");
        dir
    }

    #[tokio::test]
    async fn without_inotify_a_scan_finds_created_and_removed_cgroups() {
        let root = tempfile::tempdir().expect("directory");
        let dir = pod(root.path(), UID);
        let uid = Uid::new(UID);
        let events = Events::default();
        let mut tree = Tree::new(vec![root.path().to_owned()]);
        tree.scan(&events);
        assert_eq!(tree.blind(), Some(Errno::EMFILE));
        assert_eq!(tree.of_pod(&uid), std::slice::from_ref(&dir));

        let mut changes = tree.want(&uid);
        tree.scan(&events);
        assert!(!changes.has_changed().expect("wanted"), "nothing happened");
        fs::remove_dir(&dir).expect("removed");
        tree.scan(&events);
        assert!(changes.has_changed().expect("wanted"));
        assert!(tree.of_pod(&uid).is_empty());
        changes.mark_unchanged();
        let _ = pod(root.path(), UID);
        tree.scan(&events);
        assert!(changes.has_changed().expect("wanted"));
        assert_eq!(tree.of_pod(&uid), [dir]);

        // Once there is an instance, the next scan adds watches.
        events.open().expect("an inotify instance");
        tree.scan(&events);
        assert_eq!(tree.blind(), None);
        let other = "3f2e1d0c-1111-2222-3333-444455556667";
        let new = pod(root.path(), other);
        let applied =
            events.next(|batch| batch.iter().for_each(|event| tree.apply(&events, event)));
        applied.await.expect("the runtime is running");
        assert_eq!(tree.of_pod(&Uid::new(other)), [new]);
    }
}
