//! Cgroups (version 2) of the run, one for each stand-in kubelet.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::run::Run;
use crate::wait;

const PREFIX: &str = "probe-handler-testbed-";

/// A child cgroup of this run, removed on drop once its processes have ended.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes cgroup `probe-handler-testbed-<run>/<name>`.
    ///
    /// # Errors
    /// When cgroup2 is not mounted, or the cgroup cannot be made.
    pub fn new(run: &Run, name: &str) -> Result<Self> {
        let path = mount()?.join(format!("{PREFIX}{}", run.id())).join(name);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process into it; 0 means the calling process.
    ///
    /// # Errors
    /// When the kernel refuses, as for a process that has ended.
    pub fn add(&self, pid: u32) -> Result<()> {
        join(&self.path, pid)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that was killed a moment ago may still be counted.
        let removed = wait::to_clean_up(Duration::from_secs(2), || {
            fs::remove_dir(&self.path).is_ok() || !self.path.exists()
        });
        if !removed {
            eprintln!("testbed: {} cannot be removed", self.path.display());
        }
        if let Some(parent) = self.path.parent() {
            // Fails while another cgroup of the run is left, which removes it later.
            let _still_used = fs::remove_dir(parent);
        }
    }
}

/// Moves a process into the cgroup at `path`; 0 means the calling process.
///
/// # Errors
/// When the kernel refuses.
pub fn join(path: &Path, pid: u32) -> Result<()> {
    fs::write(path.join("cgroup.procs"), pid.to_string())
        .with_context(|| format!("moving process {pid} into {}", path.display()))
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on a hybrid.
///
/// # Errors
/// When it is not mounted.
pub fn mount() -> Result<PathBuf> {
    fs::read_to_string("/proc/self/mounts")
        .context("reading /proc/self/mounts")?
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .find(|(_, kind)| *kind == "cgroup2")
        .map(|(path, _)| PathBuf::from(path))
        .context("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

/// Removes what a run left, leaves first; errors are printed.
pub(crate) fn remove_all(run_id: &str) {
    let Ok(mount) = mount() else { return };
    let top = mount.join(format!("{PREFIX}{run_id}"));
    if !top.is_dir() {
        return;
    }
    for child in fs::read_dir(&top).into_iter().flatten().flatten() {
        if child.path().is_dir()
            && let Err(error) = fs::remove_dir(child.path())
        {
            eprintln!("testbed: removing {}: {error}", child.path().display());
        }
    }
    if let Err(error) = fs::remove_dir(&top) {
        eprintln!("testbed: removing {}: {error}", top.display());
    }
}
