//! One run of the testbed: its id, directory and addresses; also removes the leftovers of killed runs.
//!
//! Runs can overlap (a demo and the suite, for example), so names and addresses are unique per run. A run
//! holds a lock on a file in its directory. If the lock is free, the run was killed, and everything with
//! its id is removed.

use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::mesh::Identity;
use crate::{cgroup, command, envoy, netns, wait};

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
    /// Removes the leftovers of killed runs, then begins a run.
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
        // Never the id of an earlier run of this process, because its devices may still exist.
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
        mount_bpffs(&bpffs(&dir))?;
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

    /// Id of the run: the process id, with a suffix if the process has had an earlier run.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Directory of the run, removed at its end.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A BPF file system, for the pins of the run's daemons.
    pub fn bpffs(&self) -> PathBuf {
        bpffs(&self.dir)
    }

    /// The mesh's certificates.
    pub const fn mesh(&self) -> &Identity {
        &self.mesh
    }

    /// Name of an object of this run outside its directory, such as a namespace.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", prefix(&self.id))
    }

    /// The node's addresses, from which its processes connect to pods.
    pub fn node_ips(&self) -> (Ipv4Addr, Ipv6Addr) {
        self.address(1)
    }

    /// Index and addresses for another pod.
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
        // The kernel removes a namespace's devices after its end, one namespace after the other.
        let devices = format!("v{}h", self.id);
        let mut left = devices_named(&devices);
        while left > 0 {
            let before = left;
            let fewer = wait::to_clean_up(Duration::from_secs(5), || {
                left = devices_named(&devices);
                left < before
            });
            if !fewer {
                eprintln!("testbed: {left} network devices {devices}* still exist");
                break;
            }
        }
    }
}

/// The number of this namespace's network devices whose name begins with `start`.
fn devices_named(start: &str) -> usize {
    let devices = fs::read_dir("/sys/class/net").into_iter().flatten();
    let names = devices.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(start)).count()
}

fn bpffs(dir: &Path) -> PathBuf {
    dir.join("bpffs")
}

fn mount_bpffs(at: &Path) -> Result<()> {
    fs::create_dir(at)?;
    let (file_system, no_data) = (Some("bpf"), None::<&str>);
    mount(file_system, at, file_system, MsFlags::empty(), no_data)
        .with_context(|| format!("mounting a BPF file system at {}", at.display()))
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
    // Sidecars read certificates below this directory after they have dropped their privileges.
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

/// The first block 10.(200+n).0.0/16 that is used neither by another run nor by the host.
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

/// Removes leftovers of killed runs: namespaces, network devices, cgroups, directories. Returns the ids
/// of those runs.
///
/// # Errors
/// When the testbed's directory cannot be read.
pub fn cleanup_stale() -> Result<Vec<String>> {
    let base = base_dir()?;
    let _one_at_a_time = setup_lock(&base)?;
    remove_stale(&base)
}

/// Held while a run is set up: its directory exists before its lock is taken, and no other process may
/// check it in between.
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

/// Kills the daemons of a killed run, because unlike other children they do not end with it. Their
/// command line contains the run's directory.
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
            // The process may have ended meanwhile.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Best effort: an object that no longer exists is not an error, and one that cannot be removed must not
/// prevent the removal of the others.
fn remove_run(id: &str, dir: &Path) {
    netns::remove_all(&prefix(id));
    cgroup::remove_all(id);
    for mounted in [bpffs(dir), dir.join(envoy::PROGRAM)] {
        let _none = umount2(&mounted, MntFlags::MNT_DETACH);
    }
    if let Err(error) = fs::remove_dir_all(dir) {
        eprintln!("testbed: removing {}: {error}", dir.display());
    }
}
