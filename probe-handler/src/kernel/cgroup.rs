//! cgroup v2: where it is mounted, in which cgroup a process is.

use std::io;
use std::path::{Component, Path, PathBuf};

/// cgroup v2 can't be found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No mount of type cgroup2.
    #[error(
        "no cgroup2 file system is mounted: mount one (`mount -t cgroup2 none /sys/fs/cgroup/unified`) \
         or boot with systemd.unified_cgroup_hierarchy=1; in a container, mount the node's \
         /sys/fs/cgroup as a hostPath"
    )]
    NotMounted,
    /// A file of /proc can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process is in a cgroup that no mount here shows.
    #[error(
        "the cgroup of process {pid}, {cgroup} as seen from here, is not under any cgroup2 mount of this \
         container: mount the node's /sys/fs/cgroup as a hostPath"
    )]
    NotShown {
        /// The process.
        pid: u32,
        /// Its cgroup, as /proc shows it.
        cgroup: String,
    },
    /// The process is in no cgroup of version 2.
    #[error("process {pid} is in no cgroup v2 ({}: no line `0::`)", path.display())]
    NoCgroup {
        /// The process.
        pid: u32,
        /// The file read.
        path: PathBuf,
    },
}

/// Joins the cgroup namespace of process `pid`, so that `/proc/PID/cgroup` and the mounts of cgroup2 tell the
/// same paths as to it: a container has a cgroup namespace of its own as a rule (cgroup_namespaces(7)), in
/// which the rest of the node is `/../..`. The calling thread's alone, and that of threads it starts later.
/// False: it is the same already.
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
    std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// A mount of cgroup v2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The cgroup that it shows, as seen from our cgroup namespace: `/` for the namespace's root, `/../..` for
    /// one two levels above (cgroup_namespaces(7)).
    root: PathBuf,
    /// Where it shows it.
    pub point: PathBuf,
}

impl Mount {
    /// The directory of the cgroup that /proc/PID/cgroup calls `cgroup`; none where this mount does not show it.
    fn directory(&self, cgroup: &str) -> Option<PathBuf> {
        let below = Path::new(cgroup).strip_prefix(&self.root).ok()?;
        (!below.starts_with("..")).then(|| self.point.join(below))
    }

    /// How much of the hierarchy it shows: levels above (or, negative, below) the namespace's root.
    fn width(&self) -> isize {
        self.root
            .components()
            .map(|level| match level {
                Component::ParentDir => 1,
                Component::Normal(_) => -1,
                _ => 0,
            })
            .sum()
    }
}

/// Where cgroup v2 is mounted: at `/sys/fs/cgroup`, on a hybrid system at `/sys/fs/cgroup/unified`. Of several
/// mounts the one that shows most: others (a container's own) show only a part of the hierarchy.
///
/// # Errors
/// [`Error::NotMounted`], [`Error::Read`].
pub fn mount() -> Result<Mount, Error> {
    mount_in(&read(Path::new("/proc/self/mountinfo"))?).ok_or(Error::NotMounted)
}

/// The widest mount of cgroup v2, the first of several, in the text of a mountinfo file
/// (proc_pid_mountinfo(5)).
fn mount_in(mountinfo: &str) -> Option<Mount> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            if after.split(' ').next()? != "cgroup2" {
                return None;
            }
            let mut fields = before.split(' ').skip(3);
            Some(Mount {
                root: unescape(fields.next()?).into(),
                point: unescape(fields.next()?).into(),
            })
        })
        .reduce(|best, other| {
            if other.width() > best.width() {
                other
            } else {
                best
            }
        })
}

/// Undoes the octal escapes of mountinfo (`\040` is a space).
fn unescape(field: &str) -> String {
    let mut out = Vec::with_capacity(field.len());
    let bytes = field.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code = (byte == b'\\')
            .then(|| bytes.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                at += 4;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The cgroup v2 directory of process `pid` in `mount`.
///
/// # Errors
/// [`Error::Read`], [`Error::NoCgroup`], [`Error::NotShown`].
pub fn of_process(pid: u32, mount: &Mount) -> Result<PathBuf, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let text = read(&path)?;
    let cgroup = path_in(&text).ok_or(Error::NoCgroup { pid, path })?;
    mount.directory(cgroup).ok_or_else(|| Error::NotShown {
        pid,
        cgroup: cgroup.to_owned(),
    })
}

/// The path of line `0::` (cgroups(7)).
fn path_in(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The processes in the cgroup at `path`, without those of its children.
///
/// # Errors
/// [`Error::Read`].
pub fn processes(path: &Path) -> Result<Vec<u32>, Error> {
    Ok(read(&path.join("cgroup.procs"))?
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect())
}

/// [`identity`] of the hierarchy's root, whatever path leads there (fs/kernfs/dir.c: ids begin with 1).
pub const ROOT: u64 = 1;

/// The directory's identity: a cgroup made anew at the same path is another one.
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

    fn point_in(mountinfo: &str) -> Option<PathBuf> {
        mount_in(mountinfo).map(|mount| mount.point)
    }

    #[test]
    fn the_mount_is_found_on_unified_and_hybrid_systems() {
        let unified =
            "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(point_in(unified), Some("/sys/fs/cgroup".into()));
        let hybrid = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        assert_eq!(point_in(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            point_in("30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"),
            None
        );
    }

    #[test]
    fn the_widest_mount_is_preferred() {
        let node = "29 23 0:26 /kubepods/pod1 /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n\
                    30 23 0:26 / /host/sys/fs/my\\040cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(point_in(node), Some("/host/sys/fs/my cgroup".into()));
        let own = "29 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n\
                   30 23 0:26 /../.. /host/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(point_in(own), Some("/host/cgroup".into()));
    }

    #[test]
    fn a_cgroup_is_found_from_a_cgroup_namespace() {
        #[track_caller]
        fn check(root: &str, cgroup: &str, directory: Option<&str>) {
            let mount = Mount {
                root: root.into(),
                point: "/cg".into(),
            };
            assert_eq!(mount.directory(cgroup), directory.map(PathBuf::from));
        }
        check("/", "/system.slice/k", Some("/cg/system.slice/k"));
        check("/", "/", Some("/cg"));
        check(
            "/../..",
            "/../../system.slice/k",
            Some("/cg/system.slice/k"),
        );
        check("/../..", "/../..", Some("/cg"));
        // Out of sight.
        check("/", "/../../system.slice/k", None);
        check("/../..", "/../../../k", None);
        check("/kubepods", "/system.slice/k", None);
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
