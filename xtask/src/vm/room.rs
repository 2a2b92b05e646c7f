//! Whether there is memory and disk enough for the guests.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::qemu::MEMORY;

/// MiB that a kernel's package, its files and its initramfs take on disk, for the usual three and one more.
const DISK: u64 = 1600;
/// What qemu itself takes beside a guest's memory, in MiB.
const BESIDE: u64 = 256;

/// For how many guests at once, of those `wanted`, there is memory.
///
/// # Errors
/// When there is too little for one, or too little disk, or the system does not tell.
pub fn guests(directory: &Path, wanted: usize) -> Result<usize> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let memory = available(&text).context("/proc/meminfo has no MemAvailable")?;
    let disk = nix::sys::statvfs::statvfs(directory).context("statvfs")?;
    let disk = disk.blocks_available() * disk.fragment_size() / (1024 * 1024);
    let place = format!(" in {}", directory.display());
    enough("disk space", disk, DISK, &place)?;
    fitting(memory, wanted)
}

fn fitting(memory: u64, wanted: usize) -> Result<usize> {
    let each = MEMORY + BESIDE;
    enough("memory", memory, each, "")?;
    Ok(usize::try_from(memory / each).unwrap_or(wanted).min(wanted))
}

fn enough(what: &str, there: u64, needed: u64, place: &str) -> Result<()> {
    if there < needed {
        bail!("too little {what}{place}: {needed} MiB are needed, {there} MiB are free");
    }
    Ok(())
}

/// MiB that new programs can have, by /proc/meminfo.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_says_how_much_is_needed() {
        let error = enough("memory", 100, 3000, "")
            .expect_err("too little")
            .to_string();
        assert!(
            error.contains("3000 MiB") && error.contains("100 MiB"),
            "{error}"
        );
        assert!(enough("memory", 3000, 3000, "").is_ok());
    }

    #[test]
    fn as_many_guests_run_at_once_as_there_is_memory_for() {
        for (memory, wanted, at_once) in
            [(1800, 3, 1), (4000, 3, 2), (20_000, 3, 3), (20_000, 1, 1)]
        {
            assert_eq!(fitting(memory, wanted).ok(), Some(at_once));
        }
        let error = fitting(1000, 3).expect_err("too little").to_string();
        assert!(error.contains("1792 MiB"), "{error}");
    }

    #[test]
    fn free_memory_is_read_from_the_kernels_own_figures() {
        let text = "MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:    2048000 kB\n";
        assert_eq!(available(text), Some(2000));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }
}
