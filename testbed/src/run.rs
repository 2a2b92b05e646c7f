//! One run of the testbed: its id, its directory, its addresses, and what killed runs left behind.
//!
//! Runs can overlap (a demo that is up beside the suite): every name and address is the run's own.
//! A run holds a lock on a file in its directory; a directory whose lock is free belongs to a run
//! that was killed, and everything that bears its id is removed.

use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::mesh::Identity;
use crate::{cgroup, command, netns, wait};

const BLOCKS: u8 = 50;

/// Number of the next run of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A run; dropping it removes its directory.
#[derive(Debug)]
pub struct Run {
    id: String,
    dir: PathBuf,
    block: u8,
    next_pod: AtomicU16,
    mesh: Identity,
    _alive: Flock<File>,
    _block_lock: Flock<File>,
}

impl Run {
    /// Removes what killed runs left, then begins a run.
    ///
    /// # Errors
    /// When not root, or when no address range is free.
    pub fn new() -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("network namespaces need root: run this as root");
        }
        let base = base_dir()?;
        let _one_at_a_time = setup_lock(&base)?;
        let _removed = remove_stale(&base)?;
        // Never the id of an earlier run of this process: the kernel may still hold its devices.
        let id = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed))
            .map(|n| match n {
                0 => format!("{}", std::process::id()),
                n => format!("{}n{n}", std::process::id()),
            })
            .find(|id| !base.join(id).exists())
            .context("no run id is free")?;
        let dir = base.join(&id);
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&dir)
            .with_context(|| format!("making {}", dir.display()))?;
        let alive = lock(&dir.join("lock"))?.context("the run's own lock is held")?;
        let mesh = Identity::create(dir.join("mesh"))?;
        let (block, block_lock) = free_block(&base)?;
        Ok(Self {
            id,
            dir,
            block,
            next_pod: AtomicU16::new(2),
            mesh,
            _alive: alive,
            _block_lock: block_lock,
        })
    }

    /// Id of the run: the process id, with a suffix for a second run of one process.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Directory of the run, removed with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The mesh's certificates.
    pub const fn mesh(&self) -> &Identity {
        &self.mesh
    }

    /// Name of a thing of this run outside its directory, such as a namespace.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", prefix(&self.id))
    }

    /// The node's addresses, from which its processes reach the pods.
    pub fn node_ips(&self) -> (Ipv4Addr, Ipv6Addr) {
        self.address(1)
    }

    /// Addresses for one more pod.
    pub fn next_pod_ips(&self) -> (u16, Ipv4Addr, Ipv6Addr) {
        let index = self.next_pod.fetch_add(1, Ordering::Relaxed);
        let (v4, v6) = self.address(index);
        (index, v4, v6)
    }

    fn address(&self, index: u16) -> (Ipv4Addr, Ipv6Addr) {
        let [high, low] = index.to_be_bytes();
        (
            Ipv4Addr::new(10, 200 + self.block, high, low),
            Ipv6Addr::new(0xfd00, 0x7072, 0x6f62, self.block.into(), 0, 0, 0, index),
        )
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        remove_run(&self.id, &self.dir);
        // The kernel takes a namespace's devices away a moment after its end.
        let devices = format!("v{}h", self.id);
        let gone = wait::to_clean_up(Duration::from_secs(5), || {
            let left = fs::read_dir("/sys/class/net")
                .into_iter()
                .flatten()
                .flatten();
            let mut names = left.filter_map(|entry| entry.file_name().into_string().ok());
            !names.any(|name| name.starts_with(&devices))
        });
        if !gone {
            eprintln!("testbed: network devices {devices}* are still there");
        }
    }
}

fn prefix(id: &str) -> String {
    format!("pt{id}-")
}

fn base_dir() -> Result<PathBuf> {
    let parent = match Path::new("/run").is_dir() {
        true => PathBuf::from("/run"),
        false => std::env::temp_dir(),
    };
    let base = parent.join("probe-handler-testbed");
    // Sidecars drop their privileges and still read their certificates from below this directory.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&base)
        .with_context(|| format!("making {}", base.display()))?;
    Ok(base)
}

fn lock(path: &Path) -> Result<Option<Flock<File>>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(held) => Ok(Some(held)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

/// The first block 10.(200+n).0.0/16 that neither another run nor the host uses.
fn free_block(base: &Path) -> Result<(u8, Flock<File>)> {
    let routes = command::run("ip", &["-4", "route", "show", "table", "all"], "")?;
    let routes = String::from_utf8_lossy(&routes.stdout);
    for block in 0..BLOCKS {
        if routes.contains(&format!(" 10.{}.", 200 + block))
            || routes.starts_with(&format!("10.{}.", 200 + block))
            || routes.contains(&format!("\n10.{}.", 200 + block))
        {
            continue;
        }
        if let Some(held) = lock(&base.join(format!("addresses-{block}")))? {
            return Ok((block, held));
        }
    }
    bail!("every block from 10.200.0.0/16 to 10.249.0.0/16 is in use on this machine")
}

/// Removes what killed runs left: namespaces, network devices, cgroups, directories. Gives the ids
/// of those runs.
///
/// # Errors
/// When the testbed's directory cannot be read.
pub fn cleanup_stale() -> Result<Vec<String>> {
    let base = base_dir()?;
    let _one_at_a_time = setup_lock(&base)?;
    remove_stale(&base)
}

/// A run that begins has a directory whose lock it does not hold yet: nobody may look then.
fn setup_lock(base: &Path) -> Result<Flock<File>> {
    let path = base.join("setup");
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("locking {}", path.display()))
}

fn remove_stale(base: &Path) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(base)? {
        let path = entry?.path();
        let Some(id) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if !path.is_dir() {
            continue;
        }
        let Some(_held) = lock(&path.join("lock"))? else {
            continue;
        };
        end_daemons(&path);
        remove_run(id, &path);
        removed.push(id.to_owned());
    }
    Ok(removed)
}

/// Kills the daemons of a run that was killed: unlike other children they do not notice its end.
/// Their command line names the run's directory.
fn end_daemons(dir: &Path) {
    let wanted = format!("{}/", dir.display());
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&wanted) {
            // It may have ended in between.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Best effort: a thing that is already gone is no error, and one that resists must not keep the
/// rest from being removed.
fn remove_run(id: &str, dir: &Path) {
    netns::remove_all(&prefix(id));
    cgroup::remove_all(id);
    if let Err(error) = fs::remove_dir_all(dir) {
        eprintln!("testbed: removing {}: {error}", dir.display());
    }
}
