//! Processor time and memory of a process.

use std::fs;

use anyhow::{Context, Result};

/// Processor time of all threads of `pid` in nanoseconds (`schedstat`'s first field).
pub(super) fn cpu_ns(pid: u32) -> Result<u64> {
    let dir = format!("/proc/{pid}/task");
    let mut total = 0;
    for thread in fs::read_dir(&dir).context(dir)? {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let field = text.split(' ').next().unwrap_or_default();
        total += field
            .parse::<u64>()
            .with_context(|| format!("schedstat: {text}"))?;
    }
    Ok(total)
}

/// Resident memory, in KiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// All of it.
    pub(super) rss: u64,
    /// Its anonymous part: heap and stacks.
    pub(super) anonymous: u64,
    /// Proportional set size: shared pages count by their share.
    pub(super) pss: u64,
}

/// The memory of `pid`.
pub(super) fn memory(pid: u32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    Ok(Memory {
        rss: kib(&status, "VmRSS:")?,
        anonymous: kib(&status, "RssAnon:")?,
        pss: kib(&rollup, "Pss:")?,
    })
}

fn kib(text: &str, name: &str) -> Result<u64> {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .with_context(|| format!("no {name}"))
}
