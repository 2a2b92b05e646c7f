//! cgroup v2: finds where it is mounted, and the cgroup of a process.

use std::io;
use std::path::{Path, PathBuf};

use crate::mountinfo::{self, Mount};
use crate::text;

/// cgroup v2, or the cgroup of a process, can't be found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No mount of type cgroup2.
    #[error(
        "no cgroup2 file system is mounted: in a container, mount the node's /sys/fs/cgroup as a hostPath; on the \
         node, boot with systemd.unified_cgroup_hierarchy=1, or mount one (`mkdir -p /run/cgroup2 && mount -t \
         cgroup2 none /run/cgroup2`) and move the kubelet into a cgroup below it"
    )]
    NotMounted,
    /// A file of /proc can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The process is not in a cgroup of version 2.
    #[error("process {pid} is not in a cgroup v2 ({} has no line `0::`)", path.display())]
    NoCgroup {
        /// The process.
        pid: u32,
        /// The file read.
        path: PathBuf,
    },
}

/// Joins the cgroup namespace of process `pid`, so that `/proc/PID/cgroup` and the cgroup2 mounts show the same
/// paths as for that process: a container usually has its own cgroup namespace (cgroup_namespaces(7)), in which
/// the rest of the node is `/../..`. Affects only the calling thread and threads that it starts later. Returns
/// false if the thread is already in that namespace.
///
/// # Errors
/// Those of `stat`, `open` and `setns`.
pub fn join_namespace_of(pid: u32) -> io::Result<bool> {
    let theirs = PathBuf::from(format!("/proc/{pid}/ns/cgroup"));
    if identity(&theirs)? == identity(Path::new("/proc/thread-self/ns/cgroup"))? {
        return Ok(false);
    }
    let theirs = std::fs::File::open(theirs)?;
    nix::sched::setns(&theirs, nix::sched::CloneFlags::CLONE_NEWCGROUP)?;
    Ok(true)
}

fn read(path: &Path) -> Result<String, Error> {
    text::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, on a hybrid system `/sys/fs/cgroup/unified`.
///
/// # Errors
/// [`Error::NotMounted`], [`Error::Read`].
pub fn mount_point() -> Result<PathBuf, Error> {
    mount_in(&read(Path::new("/proc/self/mountinfo"))?).ok_or(Error::NotMounted)
}

/// The mount point of cgroup v2 in the text of a mountinfo file: the one that shows the largest part of the
/// hierarchy, because others (a container's) show only a smaller part.
pub(crate) fn mount_in(text: &str) -> Option<PathBuf> {
    let mut best: Option<Mount> = None;
    for mount in mountinfo::mounts(text) {
        let better = best.as_ref().is_none_or(|best| mount.shows_more_than(best));
        if mount.kind == "cgroup2" && better {
            best = Some(mount);
        }
    }
    best.map(|mount| mount.point)
}

/// The cgroup v2 directory of process `pid`, given the mount point of cgroup v2.
///
/// # Errors
/// [`Error::Read`], [`Error::NoCgroup`].
pub fn of_process(pid: u32, mount_point: &Path) -> Result<PathBuf, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
    match path_in(&read(&path)?) {
        Some(cgroup) => Ok(mount_point.join(cgroup.trim_start_matches('/'))),
        None => Err(Error::NoCgroup { pid, path }),
    }
}

/// The path of line `0::` (cgroups(7)).
pub(crate) fn path_in(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The processes in the cgroup at `path`, without those of its child cgroups.
///
/// # Errors
/// [`Error::Read`].
pub fn processes(path: &Path) -> Result<Vec<u32>, Error> {
    Ok(read(&path.join("cgroup.procs"))?
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect())
}

/// [`identity`] of the hierarchy's root, by any path (fs/kernfs/dir.c: ids begin with 1).
pub const ROOT: u64 = 1;

/// The directory's identity: a cgroup that is deleted and created again at the same path has another identity.
///
/// # Errors
/// Those of `stat`.
pub fn identity(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(path)?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_on_unified_and_hybrid_systems() {
        let unified =
            "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mount_in(unified), Some("/sys/fs/cgroup".into()));
        let hybrid = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        assert_eq!(mount_in(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            mount_in("30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"),
            None
        );
    }

    #[test]
    fn a_mount_of_the_whole_hierarchy_is_preferred() {
        let container = "29 23 0:26 /kubepods/pod1 /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n\
                         30 23 0:26 / /host/sys/fs/my\\040cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_in(container), Some("/host/sys/fs/my cgroup".into()));
    }

    #[test]
    fn in_a_cgroup_namespace_the_nodes_mount_is_preferred() {
        let contained = "60 50 0:38 / /sys/fs/cgroup rw - cgroup2 none rw\n\
                         79 69 0:38 /../.. /host/sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_in(contained), Some("/host/sys/fs/cgroup".into()));
    }

    #[test]
    fn the_v2_line_is_read_among_v1_lines() {
        assert_eq!(
            path_in("12:cpu:/x\n0::/system.slice/kubelet.service\n"),
            Some("/system.slice/kubelet.service")
        );
        assert_eq!(path_in("12:cpu:/x\n"), None);
    }
}
