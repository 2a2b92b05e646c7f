//! Mounts the file systems of a node.

use std::fs;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

/// Type and mount point, in mounting order.
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];

/// Mount point of a cgroup hierarchy of version 1 without controllers.
const CGROUP_V1: &str = "/cgroup-v1";

/// Mounts all of them, and a cgroup hierarchy of version 1 if the kernel still supports it; without it the
/// suite skips cases and reports that.
///
/// # Errors
/// When the kernel does not support one of them.
pub fn all() -> Result<()> {
    for (kind, place) in MOUNTS {
        // The kernel creates the directories below /sys.
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
