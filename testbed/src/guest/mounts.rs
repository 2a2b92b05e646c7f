//! The file systems of a node.

use std::fs;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

/// Kind and place, in the order in which one needs the other.
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];

/// Where a cgroup hierarchy of version 1 is, without controllers.
const CGROUP_V1: &str = "/cgroup-v1";

/// Mounts all of them, and a cgroup hierarchy of version 1 beside the other where the kernel still has that:
/// without it the suite says what it skips.
///
/// # Errors
/// When the kernel does not have one.
pub fn all() -> Result<()> {
    for (kind, place) in MOUNTS {
        // Those below /sys are the kernel's own.
        let _exists = fs::create_dir_all(place);
        mount(
            Some(kind),
            place,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mounting {kind} at {place}"))?;
    }
    fs::create_dir_all(CGROUP_V1).context(CGROUP_V1)?;
    let named = Some("none,name=testbed");
    let _kernel_has_none = mount(
        Some("cgroup"),
        CGROUP_V1,
        Some("cgroup"),
        MsFlags::empty(),
        named,
    );
    Ok(())
}
