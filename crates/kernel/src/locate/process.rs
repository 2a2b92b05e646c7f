//! Finds a process in a pod's cgroup, and through it the pod's network namespace.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::cgroup;
use crate::kubelet::start_time;
use crate::netns::Netns;
use model::netns::NetnsId;

/// How many levels below a pod's cgroup to search. A container may create cgroups of its own; the one of
/// its first process is near the top.
const MAX_DEPTH: usize = 4;

/// Why a pod's network namespace is not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    /// The kubelet has not created a cgroup for the pod.
    #[error("no cgroup with its UID exists (yet)")]
    NoCgroup,
    /// The pod's cgroup contains neither processes nor containers' cgroups.
    #[error("its cgroup contains no container (yet)")]
    NoContainer,
    /// The cgroups of its containers contain no process.
    #[error("its containers' cgroups contain no process (yet)")]
    NoProcess,
    /// All its processes are in the node's network namespace.
    #[error(
        "its processes are in the node's own network namespace: pods of the host network are not served"
    )]
    Host,
    /// Its processes are not visible in this pid namespace.
    #[error(
        "its processes are in a different pid namespace than this process: run this process with hostPID: true"
    )]
    OtherPids,
    /// The kernel refuses access; the message.
    #[error("{0}")]
    Refused(String),
}

impl NotFound {
    /// How far the pod's start has progressed.
    pub fn rank(&self) -> u8 {
        match self {
            Self::NoCgroup => 0,
            Self::NoContainer => 1,
            Self::NoProcess => 2,
            Self::Host | Self::OtherPids | Self::Refused(_) => 3,
        }
    }
}

/// A process in a pod's network namespace.
pub struct Found {
    /// The process.
    pub process: Process,
    /// The namespace.
    pub netns: Netns,
}

/// A process, identified by a descriptor (pidfd_open(2)) that never refers to a later process with the same id.
pub struct Process {
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Waits until the process has ended.
    ///
    /// # Errors
    /// Those of the runtime's reactor.
    pub async fn ended(&self) -> io::Result<()> {
        // Once the process has ended, the descriptor stays readable (pidfd_open(2)).
        let _ready = self.pidfd.readable().await?;
        Ok(())
    }
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: a system call on plain integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(nix::errno::Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}

/// Searches the cgroup `dir` of a pod and those below it for a process outside the network namespace `node`.
/// Returns the oldest of several: usually the sandbox's process, and always the first process of a container,
/// which is older than any namespace that the container may create itself.
///
/// Processes in the node's namespace are skipped, and added to `passed`: a container's first process is there
/// until it has joined the pod's namespace, and some runtimes keep their monitor in the pod's cgroup.
///
/// # Errors
/// Why there is no such process.
pub fn look(dir: &Path, node: NetnsId, passed: &mut Vec<CgroupProcess>) -> Result<Found, NotFound> {
    let mut members = Vec::new();
    let mut absence = match collect(dir, MAX_DEPTH, &mut members) {
        None => return Err(NotFound::NoCgroup),
        Some(0) if members.is_empty() => return Err(NotFound::NoContainer),
        Some(_) => NotFound::NoProcess,
    };
    let mut elsewhere = Vec::new();
    for member in members {
        if member.pid == 0 {
            absence = NotFound::OtherPids; // cgroups(7): not visible in our pid namespace
        } else if member.is_in(node) {
            absence = NotFound::Host;
            passed.push(member);
        } else {
            elsewhere.push((start_time(member.pid).unwrap_or(u64::MAX), member));
        }
    }
    elsewhere.sort_unstable_by_key(|(started, member)| (*started, member.pid));
    for (_, member) in &elsewhere {
        match member.open() {
            Ok(Some(found)) if found.netns.id() != node => return Ok(found),
            Ok(_) => {}
            Err(other) => absence = other,
        }
    }
    Err(absence)
}

/// A process listed in a cgroup.
#[derive(Clone, Debug)]
pub struct CgroupProcess {
    cgroup: PathBuf,
    pid: u32,
}

/// Lists the processes of the cgroup `dir` and of those below it. Returns how many cgroups are directly in
/// `dir`; `None` if it does not exist.
fn collect(dir: &Path, depth: usize, into: &mut Vec<CgroupProcess>) -> Option<u64> {
    // A directory of a cgroup file system has one link for each directory in it, and two for itself.
    let children = std::fs::metadata(dir).ok()?.nlink().saturating_sub(2);
    // Fails for a threaded cgroup (EOPNOTSUPP), and for one that was just removed.
    for pid in cgroup::processes(dir).unwrap_or_default() {
        into.push(CgroupProcess {
            cgroup: dir.to_owned(),
            pid,
        });
    }
    if depth > 0 && children > 0 {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = collect(&entry.path(), depth - 1, into);
            }
        }
    }
    Some(children)
}

impl CgroupProcess {
    /// Whether the process exists and is currently in network namespace `netns`.
    pub fn is_in(&self, netns: NetnsId) -> bool {
        NetnsId::at(&self.netns_path()).is_ok_and(|id| id == netns)
    }

    fn netns_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid))
    }

    /// Opens the process and its network namespace; `None` if it ended or moved meanwhile.
    ///
    /// The kernel may reuse the id for another process at any time. So this opens a process descriptor, then
    /// checks that the id is still listed in the cgroup, opens the namespace, and then checks that the process
    /// has not ended: between the two checks the id belonged to this process.
    ///
    /// # Errors
    /// [`NotFound::Refused`].
    pub fn open(&self) -> Result<Option<Found>, NotFound> {
        let opened = || -> io::Result<Option<(OwnedFd, Netns)>> {
            let pidfd = pidfd_open(self.pid)?;
            let listed = cgroup::processes(&self.cgroup).unwrap_or_default();
            if !listed.contains(&self.pid) {
                return Ok(None);
            }
            let netns = Netns::open(&self.netns_path())?;
            Ok((!has_ended(&pidfd)?).then_some((pidfd, netns)))
        };
        let (pidfd, netns) = match opened() {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(None),
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(refused(&error)),
        };
        // SAFETY: an `OwnedFd` is always the same open descriptor until it is dropped.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }
            .map_err(|error| refused(&error.into()))?;
        Ok(Some(Found {
            process: Process { pidfd },
            netns,
        }))
    }
}

fn refused(error: &io::Error) -> NotFound {
    // Without the process id, because then each attempt would produce a different message.
    NotFound::Refused(format!(
        "cannot open the network namespace of a process in its cgroup: {error}"
    ))
}

/// `ENOENT` and `ESRCH`: no such process; `EINVAL`: the id of a thread that is not a thread group leader.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ESRCH | libc::EINVAL)
    )
}
