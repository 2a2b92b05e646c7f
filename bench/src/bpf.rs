//! The kernel's statistics of a process's eBPF programs: run count and run time.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` of include/uapi/linux/bpf.h.
pub(super) const SOCK_ADDR: u64 = 18;
/// `BPF_PROG_TYPE_CGROUP_SKB`.
pub(super) const CGROUP_SKB: u64 = 8;

/// Enables the kernel's statistics; restores the setting on drop.
pub(super) struct Statistics {
    before: String,
}

impl Statistics {
    /// Enables the statistics (sysctl `kernel.bpf_stats_enabled`).
    pub(super) fn enable() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).context(SWITCH)?;
        fs::write(SWITCH, "1").context(SWITCH)?;
        Ok(Self { before })
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SWITCH, self.before.trim()) {
            eprintln!("testbed: {SWITCH} cannot be restored: {error}");
        }
    }
}

/// A program's statistics.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ran {
    times: u64,
    nanoseconds: u64,
}

/// The programs of type `kind` which process `pid` holds, by id.
pub(super) fn programs(pid: u32, kind: u64) -> Result<BTreeMap<u64, Ran>> {
    let dir = format!("/proc/{pid}/fdinfo");
    let mut programs = BTreeMap::new();
    for entry in fs::read_dir(&dir).context(dir)? {
        // A descriptor may be closed meanwhile.
        if let Some((id, ran)) = entry.ok().and_then(|entry| program(&entry.path(), kind)) {
            let _again = programs.insert(id, ran);
        }
    }
    Ok(programs)
}

fn program(path: &Path, kind: u64) -> Option<(u64, Ran)> {
    let text = fs::read_to_string(path).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.strip_prefix(':')?.trim().parse().ok()
    };
    // Links also contain a program's id, but not its type.
    if field("prog_type")? != kind {
        return None;
    }
    let ran = Ran {
        times: field("run_cnt")?,
        nanoseconds: field("run_time_ns")?,
    };
    Some((field("prog_id")?, ran))
}

/// Mean nanoseconds of the program that ran at least `times` between two readings. With only IPv4 connections and no
/// getpeername calls, the one of type [`SOCK_ADDR`] is connect4. There is only one of type [`CGROUP_SKB`].
pub(super) fn mean(
    before: &BTreeMap<u64, Ran>,
    after: &BTreeMap<u64, Ran>,
    times: u64,
) -> Result<u64> {
    let (ran, nanoseconds) = after
        .iter()
        .map(|(id, after)| {
            let before = before.get(id).copied().unwrap_or_default();
            (
                after.times - before.times,
                after.nanoseconds - before.nanoseconds,
            )
        })
        .max()
        .filter(|(ran, _)| *ran >= times)
        .context("none of the daemon's programs ran as often as connections were made")?;
    Ok(nanoseconds / ran.max(1))
}
