//! Finds where cgroup hierarchies are mounted: version 2, each controller of version 1, or both (hybrid).

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};

use crate::mountinfo::{Mount, mounts};
use crate::text;

/// No cgroup hierarchy was found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No cgroup file system is mounted.
    #[error(
        "no cgroup file system is mounted{}: in a container, mount the node's /sys/fs/cgroup as a hostPath",
        below.as_ref().map(|path| format!(" at or below {}", path.display())).unwrap_or_default()
    )]
    None {
        /// The directory that was searched; `None`: everywhere.
        below: Option<PathBuf>,
    },
}

/// The directories to search for pods, one for each hierarchy. `root` is a directory of a hierarchy, or
/// one below which hierarchies are mounted (the node's /sys/fs/cgroup); `None`: all mounted hierarchies.
///
/// # Errors
/// [`Error::Read`], [`Error::None`].
pub fn find(root: Option<&Path>) -> Result<Vec<PathBuf>, Error> {
    if let Some(root) = root {
        let kind = statfs(root).map_err(|errno| Error::Read {
            path: root.to_owned(),
            source: errno.into(),
        })?;
        if [CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&kind.filesystem_type()) {
            return Ok(vec![root.to_owned()]);
        }
    }
    let path = Path::new("/proc/self/mountinfo");
    let mountinfo = text::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    // A mount that is hidden by another mount can't be reached by its path.
    let visible = |mount: &Mount| {
        std::fs::metadata(&mount.point).is_ok_and(|meta| meta.dev() == mount.device)
    };
    let below = |mount: &Mount| root.is_none_or(|root| mount.point.starts_with(root));
    let found = one_each(
        mounts(&mountinfo)
            .into_iter()
            .filter(|mount| below(mount) && visible(mount)),
    );
    if found.is_empty() {
        return Err(Error::None {
            below: root.map(Path::to_owned),
        });
    }
    Ok(found)
}

/// For each hierarchy, the mount point that shows the largest part of it.
fn one_each(mounts: impl Iterator<Item = Mount>) -> Vec<PathBuf> {
    let mut best: BTreeMap<u64, Mount> = BTreeMap::new();
    for mount in mounts {
        let better = best
            .get(&mount.device)
            .is_none_or(|other| mount.shows_more_than(other));
        if better {
            let _ = best.insert(mount.device, mount);
        }
    }
    best.into_values().map(|mount| mount.point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(mountinfo: &str) -> Vec<String> {
        one_each(mounts(mountinfo).into_iter())
            .into_iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    #[test]
    fn each_hierarchy_is_found_once() {
        let unified =
            "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(found(unified), ["/sys/fs/cgroup"]);
        let hybrid = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      34 30 0:29 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        assert_eq!(
            found(hybrid),
            [
                "/sys/fs/cgroup/unified",
                "/sys/fs/cgroup/systemd",
                "/sys/fs/cgroup/cpu,cpuacct"
            ]
        );
        assert!(found("30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\nnonsense").is_empty());
    }

    #[test]
    fn a_mount_of_the_whole_hierarchy_is_preferred_to_a_containers_mount() {
        let part = "29 23 0:26 /kubepods/pod1 /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n\
                    30 23 0:26 / /host/sys/fs/my\\040cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(found(part), ["/host/sys/fs/my cgroup"]);
    }

    #[test]
    fn in_a_cgroup_namespace_the_nodes_mount_is_preferred_to_the_containers_mount() {
        let private = "29 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n\
                       30 23 0:26 /../../.. /host/sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                       31 23 0:26 /.. /elsewhere rw - cgroup2 cgroup2 rw\n";
        assert_eq!(found(private), ["/host/sys/fs/cgroup"]);
    }

    #[test]
    fn the_error_for_a_root_without_cgroups_names_the_path() {
        let error = find(Some(Path::new("/proc"))).expect_err("no cgroup below /proc");
        assert!(error.to_string().contains("/proc"), "{error}");
        let error = find(Some(Path::new("/nonexistent"))).expect_err("not there");
        assert!(error.to_string().contains("/nonexistent"), "{error}");
    }
}
