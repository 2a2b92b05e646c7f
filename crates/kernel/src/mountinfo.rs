//! Parses the cgroup mounts in /proc/PID/mountinfo (proc_pid_mountinfo(5)).
//!
//! Not by crate procfs (0.18), for two reasons. It fails for the whole file if one line is not UTF-8, and a user who may mount
//! can choose such a path. It does not decode the octal escapes of paths.

use std::path::PathBuf;

/// A mount of a cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device number: the same for all mounts of one hierarchy.
    pub device: u64,
    /// `cgroup` or `cgroup2`.
    pub kind: String,
    /// The directory of the hierarchy that is mounted, as seen from this process's cgroup namespace.
    pub root: String,
    /// The mount point.
    pub point: PathBuf,
}

impl Mount {
    /// Whether it shows a larger part of its hierarchy than `other`.
    pub fn shows_more_than(&self, other: &Self) -> bool {
        height(&self.root) > height(&other.root)
    }
}

/// The cgroup mounts in the text of a mountinfo file, in its order.
pub fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let kind = after.split(' ').next()?;
        if !matches!(kind, "cgroup" | "cgroup2") {
            return None;
        }
        let mut fields = before.split(' ').skip(2);
        let (major, minor) = fields.next()?.split_once(':')?;
        Some(Mount {
            device: libc::makedev(major.parse().ok()?, minor.parse().ok()?),
            kind: kind.to_owned(),
            root: fields.next()?.to_owned(),
            point: PathBuf::from(unescape(fields.next()?)),
        })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// How many levels a directory is above the root of this process's cgroup namespace. In a container's
/// cgroup namespace, that root is the container's cgroup, and paths above it begin with `/..`.
fn height(root: &str) -> i64 {
    root.split('/')
        .filter(|part| !part.is_empty())
        .map(|part| if part == ".." { 1 } else { -1 })
        .sum()
}

/// Decodes the octal escapes of mountinfo (`\040` is a space).
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
