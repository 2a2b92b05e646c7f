//! Cgroups (version 2) of the run, one for each stand-in kubelet.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::run::Run;
use crate::wait;

const PREFIX: &str = "probe-handler-testbed-";
/// The period of a quota, in microseconds: the kernel's default.
const PERIOD_US: u32 = 100_000;

/// A child cgroup of this run, removed on drop after its processes have ended.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Creates cgroup `probe-handler-testbed-<run>/<name>`.
    ///
    /// # Errors
    /// When cgroup2 is not mounted, or the cgroup cannot be created.
    pub fn new(run: &Run, name: &str) -> Result<Self> {
        let path = top(&mount()?, run.id()).join(name);
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
        // A process that was just killed may still count as a member.
        let removed = wait::to_clean_up(Duration::from_secs(2), || {
            fs::remove_dir(&self.path).is_ok() || !self.path.exists()
        });
        if !removed {
            eprintln!("testbed: {} cannot be removed", self.path.display());
        }
        if let Some(parent) = self.path.parent() {
            // Fails while the run has another cgroup, whose removal also removes this directory.
            let _still_used = fs::remove_dir(parent);
        }
    }
}

/// A cgroup whose processes together have a part of one processor, removed on drop after they have ended.
#[derive(Debug)]
pub struct CpuQuota {
    cgroup: Cgroup,
}

impl CpuQuota {
    /// A quota of `percent` of a processor; none where the system has no cpu controller of version 1 or 2.
    ///
    /// # Errors
    /// When the cgroup cannot be created or limited.
    pub fn new(run: &Run, percent: u32) -> Result<Option<Self>> {
        let quota_us = PERIOD_US / 100 * percent;
        let version1 = top(Path::new("/sys/fs/cgroup/cpu"), run.id());
        let version2 = top(&mount()?, run.id());
        let (top, files) = if version1.parent().is_some_and(Path::exists) {
            let files = [
                ("cpu.cfs_period_us", PERIOD_US.to_string()),
                ("cpu.cfs_quota_us", quota_us.to_string()),
            ];
            (version1, files.to_vec())
        } else if fs::create_dir_all(&version2).is_ok() && gives_cpu(&version2) {
            let files = vec![("cpu.max", format!("{quota_us} {PERIOD_US}"))];
            (version2, files)
        } else {
            return Ok(None);
        };
        let path = top.join("quota");
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        let cgroup = Cgroup { path };
        for (file, value) in files {
            let path = cgroup.path.join(file);
            fs::write(&path, value).with_context(|| path.display().to_string())?;
        }
        Ok(Some(Self { cgroup }))
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&self, pid: u32) -> Result<()> {
        self.cgroup.add(pid)
    }

    /// In how many periods its processes had used up the quota.
    ///
    /// # Errors
    /// When the kernel does not report it.
    pub fn throttled(&self) -> Result<u64> {
        let text = fs::read_to_string(self.cgroup.path.join("cpu.stat"))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("nr_throttled "));
        Ok(line
            .context("no nr_throttled in cpu.stat")?
            .trim()
            .parse()?)
    }
}

/// Enables the cpu controller for the children of the cgroup at `path`.
fn gives_cpu(path: &Path) -> bool {
    let enabled = |path: &Path| fs::write(path.join("cgroup.subtree_control"), "+cpu").is_ok();
    path.parent().is_some_and(enabled) && enabled(path)
}

/// Moves a process into the cgroup at `path`; 0 means the calling process.
///
/// # Errors
/// When the kernel refuses.
pub fn join(path: &Path, pid: u32) -> Result<()> {
    fs::write(path.join("cgroup.procs"), pid.to_string())
        .with_context(|| format!("moving process {pid} into {}", path.display()))
}

/// `--cgroup PATH` for each of these, as arguments of a process that must move into them.
pub fn arguments(cgroups: &[PathBuf]) -> impl Iterator<Item = &OsStr> {
    cgroups
        .iter()
        .flat_map(|path| [OsStr::new("--cgroup"), path.as_os_str()])
}

/// The mount point of cgroup2: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on a hybrid system.
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

/// The directory of a run in the hierarchy mounted at `mount`.
pub fn top(mount: &Path, run_id: &str) -> PathBuf {
    mount.join(format!("{PREFIX}{run_id}"))
}

/// Removes the cgroup at `path` and all below it, except those with processes.
pub fn remove_tree(path: &Path) {
    for child in fs::read_dir(path).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&child.path());
        }
    }
    let _still_used = fs::remove_dir(path);
}

/// Removes a run's leftovers in every hierarchy, including processes; prints errors.
pub(crate) fn remove_all(run_id: &str) {
    for mount in kernel::locate::hierarchies(None).unwrap_or_default() {
        let top = top(&mount, run_id);
        if !top.is_dir() {
            continue;
        }
        let removed = wait::to_clean_up(Duration::from_secs(2), || {
            kill_in(&top);
            remove_tree(&top);
            !top.exists()
        });
        if !removed {
            eprintln!("testbed: {} cannot be removed", top.display());
        }
    }
}

fn kill_in(path: &Path) {
    let listed = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in listed.lines().filter_map(|line| line.parse().ok()) {
        if pid > 0 {
            let _already_dead = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    for child in fs::read_dir(path).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_in(&child.path());
        }
    }
}
