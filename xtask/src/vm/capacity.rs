//! How many guests this machine can run at the same time.

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail};

use super::qemu::MEMORY;

/// Disk space in MiB for the packages, files and initramfs of the three default kernels and one more.
const DISK: u64 = 1600;
/// Memory that qemu uses in addition to the guest's, in MiB.
const QEMU_OVERHEAD: u64 = 256;

/// How many of the `wanted` guests can run at the same time: they must fit into memory, and each has a processor of
/// this machine. Guests that share a processor exceed even the suite's stretched time limits.
///
/// # Errors
/// When the memory does not suffice for one guest, the disk space does not suffice, or a number cannot be read.
pub fn guests_at_once(directory: &Path, wanted: usize) -> Result<usize> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let memory = available(&text).context("/proc/meminfo has no MemAvailable")?;
    let disk = nix::sys::statvfs::statvfs(directory).context("statvfs")?;
    let disk = disk.blocks_available() * disk.fragment_size() / (1024 * 1024);
    let place = format!(" in {}", directory.display());
    require("disk space", disk, DISK, &place)?;
    let processors = thread::available_parallelism().context("the number of processors")?;
    guests_in(memory, processors.get(), wanted)
}

fn guests_in(memory: u64, processors: usize, wanted: usize) -> Result<usize> {
    let each = MEMORY + QEMU_OVERHEAD;
    require("memory", memory, each, "")?;
    let fit = usize::try_from(memory / each).unwrap_or(wanted);
    Ok(fit.min(processors).min(wanted))
}

fn require(what: &str, there: u64, needed: u64, place: &str) -> Result<()> {
    if there < needed {
        bail!("not enough {what}{place}: needs {needed} MiB, {there} MiB are free");
    }
    Ok(())
}

/// Available memory in MiB, from /proc/meminfo.
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
    fn the_error_names_the_needed_and_the_free_amount() {
        let error = require("memory", 100, 3000, "")
            .expect_err("too little")
            .to_string();
        assert!(
            error.contains("3000 MiB") && error.contains("100 MiB"),
            "{error}"
        );
        assert!(require("memory", 3000, 3000, "").is_ok());
    }

    #[test]
    fn memory_and_processors_limit_how_many_guests_run_at_once() {
        for (memory, processors, wanted, at_once) in [
            (1800, 8, 3, 1),
            (4000, 8, 3, 2),
            (20_000, 8, 3, 3),
            (20_000, 2, 3, 2),
            (20_000, 1, 3, 1),
            (20_000, 8, 1, 1),
        ] {
            assert_eq!(guests_in(memory, processors, wanted).ok(), Some(at_once));
        }
        let error = guests_in(1000, 8, 3).expect_err("too little").to_string();
        assert!(error.contains("1792 MiB"), "{error}");
    }

    #[test]
    fn available_memory_is_read_from_meminfo() {
        let text = "MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:    2048000 kB\n";
        assert_eq!(available(text), Some(2000));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }
}
