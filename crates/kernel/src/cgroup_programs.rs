//! Which programs are attached to a cgroup (`BPF_PROG_QUERY` of bpf(2)).

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use aya::programs::loaded_programs;
use probe_handler_common::programs;

/// `BPF_PROG_QUERY` of enum bpf_cmd.
const BPF_PROG_QUERY: libc::c_long = 16;
/// `BPF_CGROUP_SOCK_OPS` of enum bpf_attach_type.
pub(crate) const SOCK_OPS: u32 = 3;
/// The maximum number of programs of one attach type on one cgroup (`BPF_CGROUP_MAX_PROGS`).
const MOST: usize = 64;

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

/// How many programs of `attach_type` are attached to exactly this cgroup, and with which flags. `None` if it can't be queried.
pub(crate) fn count(cgroup: &File, attach_type: u32) -> Option<(u32, u32)> {
    let attr = query(cgroup, attach_type, &mut [])?;
    Some((attr.prog_cnt, attr.attach_flags))
}

/// Whether a program that has the name of our `sock_ops`, but another id than `own`, is attached to `cgroup`. False if the
/// programs can't be read.
pub(crate) fn sock_ops_of_others(cgroup: &Path, own: u32) -> bool {
    let Ok(directory) = File::open(cgroup) else {
        return false;
    };
    let mut ids = [0; MOST];
    let Some(attr) = query(&directory, SOCK_OPS, &mut ids) else {
        return false;
    };
    let count = usize::try_from(attr.prog_cnt).unwrap_or(MOST).min(MOST);
    let others: Vec<u32> = ids
        .into_iter()
        .take(count)
        .filter(|id| *id != own)
        .collect();
    // Reads the names of all loaded programs, but only if another program is attached, which is rare.
    !others.is_empty()
        && loaded_programs().filter_map(Result::ok).any(|program| {
            others.contains(&program.id()) && program.name() == programs::SOCK_OPS.as_bytes()
        })
}

/// Queries the programs of `attach_type` on exactly this cgroup, and stores the ids of the first ones in `ids`.
fn query(cgroup: &File, attach_type: u32, ids: &mut [u32]) -> Option<QueryAttr> {
    let mut attr = QueryAttr {
        target_fd: u32::try_from(cgroup.as_raw_fd()).ok()?,
        attach_type,
        prog_cnt: u32::try_from(ids.len()).ok()?,
        prog_ids: match ids.is_empty() {
            // Without an array for ids, the kernel returns only their number.
            true => 0,
            false => ids.as_mut_ptr() as u64,
        },
        ..QueryAttr::default()
    };
    // SAFETY: the attribute has the layout of this command (bpf(2)), and unused fields are zero; the kernel writes at most
    // `prog_cnt` ids to `prog_ids`, which has room for them and outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut attr,
            size_of::<QueryAttr>(),
        )
    };
    (result == 0).then_some(attr)
}
