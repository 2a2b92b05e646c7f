//! From a pod's cgroup to the process that holds its network namespace.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::kernel::cgroup;
use crate::kernel::kubelet::start_time;
use crate::kernel::netns::{Netns, NetnsId};

/// How deep to look below a pod's cgroup. A container may make cgroups of its own; those that hold its
/// first process are near the top.
const MAX_DEPTH: usize = 4;

/// Why no network namespace of a pod is found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absence {
    /// The kubelet has made no cgroup for it.
    #[error("no cgroup bears its UID (yet)")]
    NoCgroup,
    /// Its cgroup has no process.
    #[error("no process runs in its cgroup (yet)")]
    NoProcess,
    /// The processes found share the node's namespace.
    #[error(
        "its processes are in the node's own network namespace: pods of the host network are left alone"
    )]
    Host,
    /// We may not see the processes.
    #[error(
        "its processes are in another pid namespace than this process: run this with hostPID: true"
    )]
    OtherPids,
    /// The kernel refuses.
    #[error("{0}")]
    Refused(String),
}

/// A process in a pod's network namespace.
pub struct Found {
    /// The process.
    pub process: Process,
    /// The namespace.
    pub netns: Netns,
}

/// A process, held by a descriptor (pidfd_open(2)) that no later process with its id can take over.
pub struct Process {
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: a system call on plain integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(nix::errno::Errno::result(fd)?).map_err(io::Error::other)?;
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an `OwnedFd` is always the same open descriptor until it is dropped.
        let pidfd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { pidfd })
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// Those of the runtime's reactor.
    pub async fn ended(&self) -> io::Result<()> {
        // Readable from then on, for ever (pidfd_open(2)).
        let _ready = self.pidfd.readable().await?;
        Ok(())
    }

    fn has_ended(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.pidfd.get_ref().as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
    }
}

/// Looks for a process in another network namespace than `node`'s in the cgroups `dirs` of one pod and
/// below them. Of several the oldest is taken: the sandbox's own as a rule, and in any case the first of
/// a container, which is older than the namespaces that a container may make within itself.
///
/// Processes in the node's namespace are passed over: a container's first process is there until it has
/// joined the pod's, and some runtimes keep their monitor in the pod's cgroup.
///
/// # Errors
/// Why there is none.
pub fn look<'a>(
    dirs: impl IntoIterator<Item = &'a PathBuf>,
    node: NetnsId,
) -> Result<Found, Absence> {
    let mut absence = Absence::NoCgroup;
    for dir in dirs {
        match look_in(dir, node) {
            Ok(found) => return Ok(found),
            Err(Absence::NoCgroup) => {}
            Err(Absence::NoProcess) if absence != Absence::NoCgroup => {}
            Err(other) => absence = other,
        }
    }
    Err(absence)
}

fn look_in(dir: &Path, node: NetnsId) -> Result<Found, Absence> {
    let mut members = Vec::new();
    if !collect(dir, MAX_DEPTH, &mut members) {
        return Err(Absence::NoCgroup);
    }
    members.sort_unstable_by_key(|member| (member.started, member.pid));
    let mut absence = Absence::NoProcess;
    for member in &members {
        match member.open() {
            Ok(None) => {}
            Ok(Some(found)) if found.netns.id() != node => return Ok(found),
            Ok(Some(_)) => absence = Absence::Host,
            Err(other) => absence = other,
        }
    }
    Err(absence)
}

/// A process listed in a cgroup.
struct Member {
    cgroup: PathBuf,
    pid: u32,
    /// Clock ticks since boot.
    started: u64,
}

/// Lists the processes of the cgroup `dir` and those below it; false when it is not there.
fn collect(dir: &Path, depth: usize, into: &mut Vec<Member>) -> bool {
    let Ok(meta) = std::fs::metadata(dir) else {
        return false;
    };
    // A threaded cgroup does not tell (EOPNOTSUPP), one just removed neither.
    for pid in cgroup::processes(dir).unwrap_or_default() {
        into.push(Member {
            cgroup: dir.to_owned(),
            pid,
            started: start_time(pid).unwrap_or(u64::MAX),
        });
    }
    // A directory of a cgroup file system has one link for each directory in it, and two of its own.
    if depth == 0 || meta.nlink() == 2 {
        return true;
    }
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = collect(&entry.path(), depth - 1, into);
        }
    }
    true
}

impl Member {
    /// Opens the process and its network namespace; none if it ended or moved meanwhile.
    ///
    /// The id may go to another process at any time. So the process is held by a descriptor, seen again
    /// in the cgroup after that, and seen alive after the namespace was opened: in between, the id was
    /// its own.
    fn open(&self) -> Result<Option<Found>, Absence> {
        if self.pid == 0 {
            return Err(Absence::OtherPids); // cgroups(7): not visible in our pid namespace
        }
        let process = match Process::open(self.pid) {
            Ok(process) => process,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(self.refused("watch", &error)),
        };
        let listed = cgroup::processes(&self.cgroup).unwrap_or_default();
        if !listed.contains(&self.pid) {
            return Ok(None);
        }
        let opened = Netns::open(Path::new(&format!("/proc/{}/ns/net", self.pid)));
        if process
            .has_ended()
            .map_err(|error| self.refused("watch", &error))?
        {
            return Ok(None);
        }
        match opened {
            Ok(netns) => Ok(Some(Found { process, netns })),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(self.refused("open the network namespace of", &error)),
        }
    }

    fn refused(&self, what: &str, error: &io::Error) -> Absence {
        // Without the process's id, which would make each try a new message.
        Absence::Refused(format!("cannot {what} a process in its cgroup: {error}"))
    }
}

/// `ENOENT` and `ESRCH`: no such process; `EINVAL`: no process any more but a thread's id.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ESRCH | libc::EINVAL)
    )
}
