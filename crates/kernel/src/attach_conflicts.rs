//! Programs that forbid ours: those attached to a parent cgroup by the legacy way, without
//! BPF_F_ALLOW_MULTI. The kernel then refuses any attachment below (EPERM), or lets the parent's program
//! be replaced silently (BPF_F_ALLOW_OVERRIDE).

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::cgroup;

/// `BPF_PROG_QUERY` of enum bpf_cmd.
const BPF_PROG_QUERY: libc::c_long = 16;
/// `BPF_F_ALLOW_MULTI`.
const ALLOW_MULTI: u32 = 1 << 1;
/// The attach types that we need, of enum bpf_attach_type.
const ATTACH_TYPES: [(u32, &str); 5] = [
    (3, "sock_ops"),
    (10, "connect4"),
    (11, "connect6"),
    (29, "getpeername4"),
    (30, "getpeername6"),
];

/// The part of `union bpf_attr` that `BPF_PROG_QUERY` uses.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    _pad: u32,
}

/// A cgroup that forbids attaching below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The parent cgroup.
    pub cgroup: PathBuf,
    /// The hook that is taken.
    pub hook: &'static str,
}

/// What to do about a kernel that forbids attaching to `cgroup` (EPERM): which program of whom stands in the way.
pub fn remedy(cgroup: &Path) -> String {
    let obstacles = cgroup::mount_point()
        .map(|mount_point| obstacles(cgroup, &mount_point))
        .unwrap_or_default();
    if obstacles.is_empty() {
        return "add CAP_NET_ADMIN; if it is there, see with `bpftool cgroup tree` which program is attached to a \
                parent cgroup without BPF_F_ALLOW_MULTI, which forbids programs below it"
            .to_owned();
    }
    let list: Vec<String> = obstacles
        .iter()
        .map(|obstacle| format!("{} at {}", obstacle.hook, obstacle.cgroup.display()))
        .collect();
    format!(
        "programs attached without BPF_F_ALLOW_MULTI stand in the way ({}): their owner (`bpftool cgroup \
         show DIR`, on the node; Cilium up to 1.13 does so) has to attach with BPF_F_ALLOW_MULTI or by link",
        list.join(", ")
    )
}

/// The cgroups above `cgroup`, up to `mount_point`, whose legacy programs stand in our way. What can't be
/// queried (no CAP_NET_ADMIN) is no obstacle that we know of.
pub fn obstacles(cgroup: &Path, mount_point: &Path) -> Vec<Obstacle> {
    cgroup
        .ancestors()
        .take_while(|ancestor| ancestor.starts_with(mount_point))
        .flat_map(|ancestor| {
            let directory = File::open(ancestor).ok();
            ATTACH_TYPES.into_iter().filter_map(move |(kind, hook)| {
                let (programs, flags) = query(directory.as_ref()?, kind)?;
                (programs > 0 && flags & ALLOW_MULTI == 0).then(|| Obstacle {
                    cgroup: ancestor.to_owned(),
                    hook,
                })
            })
        })
        .collect()
}

/// How many programs of `attach_type` are attached just there, and with which flags.
fn query(cgroup: &File, attach_type: u32) -> Option<(u32, u32)> {
    let mut attr = QueryAttr {
        target_fd: u32::try_from(cgroup.as_raw_fd()).ok()?,
        attach_type,
        ..QueryAttr::default()
    };
    // SAFETY: the attribute is as the kernel wants it for this command (bpf(2)), zeroed where unused; no
    // buffer is given, so the kernel only counts.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut attr,
            size_of::<QueryAttr>(),
        )
    };
    (result == 0).then_some((attr.prog_cnt, attr.attach_flags))
}
