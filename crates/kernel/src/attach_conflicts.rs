//! Finds programs that prevent attaching ours: those that are attached to a parent cgroup by the legacy
//! API without BPF_F_ALLOW_MULTI. The kernel then refuses any attachment below that cgroup (EPERM), or
//! silently replaces the parent's program (BPF_F_ALLOW_OVERRIDE).

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::cgroup;
use crate::cgroup_programs::{self, SOCK_OPS};

/// `BPF_F_ALLOW_MULTI`.
const ALLOW_MULTI: u32 = 1 << 1;
/// The attach types that the daemon uses, of enum bpf_attach_type.
const ATTACH_TYPES: [(u32, &str); 6] = [
    (0, "ingress"),
    (SOCK_OPS, "sock_ops"),
    (10, "connect4"),
    (11, "connect6"),
    (29, "getpeername4"),
    (30, "getpeername6"),
];

/// A cgroup below which the kernel refuses to attach programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The parent cgroup.
    pub cgroup: PathBuf,
    /// The occupied hook.
    pub hook: &'static str,
}

/// What to do if the kernel refuses to attach to `cgroup` (EPERM): names the hooks and cgroups of conflicting programs.
pub fn remedy(cgroup: &Path) -> String {
    let obstacles = cgroup::mount_point()
        .map(|mount_point| obstacles(cgroup, &mount_point))
        .unwrap_or_default();
    if obstacles.is_empty() {
        return "add CAP_NET_ADMIN; if it is present, use `bpftool cgroup tree` to find a program that is attached to a \
                parent cgroup without BPF_F_ALLOW_MULTI, which prevents attaching programs below it"
            .to_owned();
    }
    let list: Vec<String> = obstacles
        .iter()
        .map(|obstacle| format!("{} at {}", obstacle.hook, obstacle.cgroup.display()))
        .collect();
    format!(
        "programs attached without BPF_F_ALLOW_MULTI conflict with ours ({}): their owner (Cilium up to 1.13 \
         attaches such programs; see `bpftool cgroup show DIR` on the node) must attach them with \
         BPF_F_ALLOW_MULTI or by link",
        list.join(", ")
    )
}

/// `cgroup` and the cgroups above it, up to `mount_point`, whose legacy programs prevent the attachment. A cgroup
/// that can't be queried (no CAP_NET_ADMIN) is not reported.
pub fn obstacles(cgroup: &Path, mount_point: &Path) -> Vec<Obstacle> {
    cgroup
        .ancestors()
        .take_while(|ancestor| ancestor.starts_with(mount_point))
        .flat_map(|ancestor| {
            let directory = File::open(ancestor).ok();
            ATTACH_TYPES.into_iter().filter_map(move |(kind, hook)| {
                let (programs, flags) = cgroup_programs::count(directory.as_ref()?, kind)?;
                (programs > 0 && flags & ALLOW_MULTI == 0).then(|| Obstacle {
                    cgroup: ancestor.to_owned(),
                    hook,
                })
            })
        })
        .collect()
}
