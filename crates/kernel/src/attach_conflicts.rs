//! Finds programs that prevent attaching ours: those that are attached to a parent cgroup by the legacy
//! API without BPF_F_ALLOW_MULTI. The kernel then refuses any attachment below that cgroup (EPERM), or
//! silently replaces the parent's program (BPF_F_ALLOW_OVERRIDE).

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::cgroup;

/// `BPF_PROG_QUERY` of enum bpf_cmd.
const BPF_PROG_QUERY: libc::c_long = 16;
/// `BPF_F_ALLOW_MULTI`.
const ALLOW_MULTI: u32 = 1 << 1;
/// The attach types that the daemon uses, of enum bpf_attach_type.
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
                let (programs, flags) = query(directory.as_ref()?, kind)?;
                (programs > 0 && flags & ALLOW_MULTI == 0).then(|| Obstacle {
                    cgroup: ancestor.to_owned(),
                    hook,
                })
            })
        })
        .collect()
}

/// How many programs of `attach_type` are attached to exactly this cgroup, and with which flags.
fn query(cgroup: &File, attach_type: u32) -> Option<(u32, u32)> {
    let mut attr = QueryAttr {
        target_fd: u32::try_from(cgroup.as_raw_fd()).ok()?,
        attach_type,
        ..QueryAttr::default()
    };
    // SAFETY: the attribute has the layout of this command (bpf(2)), and unused fields are zero; there is no
    // buffer, so the kernel only counts the programs.
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
