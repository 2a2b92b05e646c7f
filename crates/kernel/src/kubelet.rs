//! Finds the kubelet and its cgroup, and detects when either changes.

mod candidate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::cgroup;
use crate::locate::names_a_pod;
use crate::text;
use candidate::{Candidate, Executable, likeliest};
use model::netns::NetnsId;

/// The kubelet can't be found, or the programs must not be attached to its cgroup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// cgroup v2 is missing or can't be read.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// No process has one of the kubelet's names.
    #[error(
        "no kubelet found in this pid namespace (searched for processes of this user, outside pods, named {}): \
         start the kubelet, run this process with hostPID: true, or set the kubelet's process name with \
         --kubelet-name or its cgroup with --kubelet-cgroup",
        names.join(", ")
    )]
    NotFound {
        /// The names searched for.
        names: Vec<String>,
    },
    /// The cgroup given on the command line does not exist.
    #[error("cgroup {} does not exist (yet)", path.display())]
    NoCgroup {
        /// The directory.
        path: PathBuf,
    },
    /// The kubelet is in the root cgroup, where other software attaches its programs too.
    #[error(
        "the kubelet's cgroup is the root cgroup {}, where other software may remove programs that it did not \
         attach: move the kubelet into its own cgroup, or allow the root cgroup with --allow-root-cgroup",
        path.display()
    )]
    Root {
        /// The directory.
        path: PathBuf,
    },
    /// Every process of the cgroup counts as the kubelet, and this process is one of them.
    #[error(
        "this process is in cgroup {} itself, so its own connections would be treated as the kubelet's: set \
         --kubelet-cgroup to the kubelet's own cgroup, or move this process to another one",
        path.display()
    )]
    Own {
        /// The directory.
        path: PathBuf,
    },
    /// Other processes share the kubelet's cgroup, and the programs can't distinguish them from the kubelet.
    #[error(
        "the kubelet (process {pid}) shares its cgroup {} with other processes, and from a nested pid \
         namespace they can't be distinguished: move the kubelet into its own cgroup, or run this process in \
         the initial pid namespace",
        path.display()
    )]
    Indistinct {
        /// The kubelet.
        pid: u32,
        /// Its cgroup.
        path: PathBuf,
    },
    /// The kubelet is in a different network namespace than this process.
    #[error(
        "the kubelet (process {pid}) is in a different network namespace than this process: run this process \
         with hostNetwork: true on the kubelet's node"
    )]
    OtherNetwork {
        /// The kubelet.
        pid: u32,
    },
}

/// How to find the kubelet.
#[derive(Clone, Debug)]
pub struct Search {
    /// Process names (`comm`) of kubelets: `kubelet`, `kubelite`, `k3s-server`, ...
    pub names: Vec<String>,
    /// The cgroup to use, whichever processes are in it.
    pub cgroup: Option<PathBuf>,
    /// Whether the root cgroup is allowed.
    pub allow_root: bool,
}

/// A kubelet that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubelet {
    /// Its process; `None` if the cgroup was given and contains no process with a kubelet's name.
    pub pid: Option<u32>,
    /// The only process whose connections the programs handle; `None`: every process of the cgroup counts as
    /// the kubelet. The programs see process ids of the initial pid namespace: in another namespace (a node
    /// that is itself a container) `pid` could be the id of any process.
    pub filter: Option<u32>,
    /// Start time of the process, in clock ticks since boot: distinguishes it from a later process with the same id.
    pub started: u64,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Distinguishes the cgroup from a later one at the same path.
    pub cgroup_id: u64,
    /// Number of other processes in the same cgroup; their connections are unchanged when `pid` is known.
    pub shared_with: usize,
}

/// Processes that contain other components besides the kubelet, for example an API server.
const SHARED_PROCESSES: [&str; 4] = ["kubelite", "k3s", "k3s-server", "k3s-agent"];

impl Kubelet {
    /// Whether its process also makes connections that are not the kubelet's: k3s and MicroK8s run the kubelet
    /// and the API server, which calls webhooks and proxies to pods, in one process.
    pub fn is_shared_process(&self) -> bool {
        let name = self.pid.and_then(comm);
        name.is_some_and(|name| SHARED_PROCESSES.contains(&name.as_str()))
    }

    /// Whether the programs' configuration and attachment are the same for `self` and `other`.
    pub fn same_place(&self, other: &Self) -> bool {
        (self.pid, self.started, self.cgroup_id, &self.cgroup)
            == (other.pid, other.started, other.cgroup_id, &other.cgroup)
    }
}

/// Searches for the kubelet, and remembers which processes it can skip.
pub struct Finder {
    search: Search,
    mount_point: PathBuf,
    /// For each process: the number of searches since the kubelet was last seen in which its name did not match.
    seen: BTreeMap<u32, u32>,
    searches: u32,
    /// Whether a process with a kubelet's name has been found in the given cgroup.
    named: bool,
    /// The cgroup that is searched first: the one of the first kubelet found by name, because a restarted kubelet
    /// comes back there, or of a process that is more likely the kubelet.
    preferred_cgroup: Option<PathBuf>,
    /// Whether a process may appear that is clearly more likely the kubelet.
    in_doubt: bool,
    /// The process that the log last named as chosen from several.
    logged_choice: Option<u32>,
    /// How often [`Finder::by_name`] was called.
    calls: u32,
}

/// A process may become the kubelet long after its start: a script that prepares the kubelet's arguments,
/// k3s while it unpacks itself. The name of a process is checked in each of its first `NEW_PROCESS_SEARCHES` searches,
const NEW_PROCESS_SEARCHES: u32 = 500;
/// and after that only in every `OLD_PROCESS_INTERVAL`th search, because reading a name costs a file access.
const OLD_PROCESS_INTERVAL: u32 = 25;
/// All processes are checked only in every `RECHECK_INTERVAL`th search while another process may be more likely the kubelet:
/// the check takes milliseconds on a node with a thousand processes.
const RECHECK_INTERVAL: u32 = 50;

impl Finder {
    /// Prepares the search.
    ///
    /// # Errors
    /// [`Error::Cgroup`] if cgroup v2 is not mounted.
    pub fn new(search: Search) -> Result<Self, Error> {
        Ok(Self {
            search,
            mount_point: cgroup::mount_point()?,
            seen: BTreeMap::new(),
            searches: 0,
            named: false,
            preferred_cgroup: None,
            in_doubt: false,
            logged_choice: None,
            calls: 0,
        })
    }

    /// Finds the current kubelet. Checks `last` first; while that process runs, the search costs a few small reads of /proc.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn find(&mut self, last: Option<&Kubelet>) -> Result<Kubelet, Error> {
        let alive = last.and_then(|last| {
            let pid = last.pid?;
            // The process may execute another program by now: the name of `k3s kubectl` is k3s for a moment.
            let named = comm(pid).is_some_and(|comm| self.is_kubelet(&comm));
            (named && start_time(pid) == Some(last.started)).then_some(pid)
        });
        if alive.is_some() {
            // Other processes may have these ids by the next search for the kubelet.
            self.seen.clear();
        }
        let (pid, cgroup) = match self.search.cgroup.clone() {
            Some(cgroup) => (self.named_in(&cgroup, alive)?, cgroup),
            None => {
                let pid = self.by_name(last, alive)?;
                let cgroup = self.cgroup_of(pid)?;
                if let Some(preferred) = &self.preferred_cgroup
                    && alive != Some(pid)
                    && *preferred != cgroup
                {
                    tracing::warn!(
                        pid,
                        cgroup = %cgroup.display(),
                        before = %preferred.display(),
                        "a process with the kubelet's name is in a different cgroup than the kubelet was: using it as \
                         the kubelet until one runs in the previous cgroup again"
                    );
                }
                (Some(pid), cgroup)
            }
        };
        let cgroup_id = cgroup::identity(&cgroup).map_err(|_| Error::NoCgroup {
            path: cgroup.clone(),
        })?;
        if cgroup_id == cgroup::ROOT && !self.search.allow_root {
            return Err(Error::Root { path: cgroup });
        }
        let filter = pid.filter(|_| initial_pid_namespace());
        if filter.is_none() && self.within(&cgroup) {
            return Err(Error::Own { path: cgroup });
        }
        let started = pid.and_then(start_time).unwrap_or_default();
        let shared_with = match (last, pid) {
            // The count is only shown to operators: it is read again only when the kubelet changes.
            (Some(last), _) if last.pid == pid && last.cgroup_id == cgroup_id => last.shared_with,
            _ => cgroup::processes(&cgroup)
                .map(|pids| pids.iter().filter(|other| Some(**other) != pid).count())
                .unwrap_or_default(),
        };
        // Children of the kubelet come and go: only the processes present at the time of attaching matter.
        let known = last.is_some_and(|last| (last.pid, last.started) == (pid, started));
        if let (Some(pid), None, 1.., false) = (pid, filter, shared_with, known) {
            return Err(Error::Indistinct { pid, path: cgroup });
        }
        if self.search.cgroup.is_none() && self.preferred_cgroup.is_none() {
            self.preferred_cgroup = Some(cgroup.clone());
        }
        Ok(Kubelet {
            pid,
            filter,
            started,
            cgroup,
            cgroup_id,
            shared_with,
        })
    }

    /// Whether the process of `kubelet` has certainly ended or been replaced; false if it can't be examined.
    pub fn is_gone(&self, kubelet: &Kubelet) -> bool {
        let Some(pid) = kubelet.pid else {
            return false;
        };
        let ended =
            i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH));
        let later = start_time(pid).is_some_and(|started| started != kubelet.started);
        let renamed = comm(pid).is_some_and(|comm| !self.is_kubelet(&comm));
        ended || later || renamed
    }

    /// The process with a kubelet's name in the given cgroup, if there is one: `alive`, else the oldest (others
    /// are its children, about to execute another program). Once one was found, a cgroup without one means
    /// that the kubelet is restarting: no other process counts as the kubelet meanwhile.
    fn named_in(&mut self, cgroup: &Path, alive: Option<u32>) -> Result<Option<u32>, Error> {
        let mut processes = cgroup::processes(cgroup).map_err(|_| Error::NoCgroup {
            path: cgroup.to_owned(),
        })?;
        if alive.is_some_and(|pid| processes.contains(&pid)) {
            return Ok(alive);
        }
        processes.retain(|pid| comm(*pid).is_some_and(|comm| self.is_kubelet(&comm)));
        let oldest = oldest_first(processes).first().copied();
        self.named |= oldest.is_some();
        if oldest.is_none() && self.named {
            return Err(self.not_found());
        }
        Ok(oldest)
    }

    /// The kubelet by its process name: `alive`, unless another process is more likely the kubelet.
    fn by_name(&mut self, last: Option<&Kubelet>, alive: Option<u32>) -> Result<u32, Error> {
        self.calls = self.calls.wrapping_add(1);
        let Some(alive) = alive else {
            // While the kubelet restarts, the only process with its name may be another program.
            return match self.in_preferred_cgroup() {
                Some(pid) => Ok(pid),
                None => self.find_process(),
            };
        };
        let elsewhere =
            last.is_some_and(|last| self.preferred_cgroup.as_ref() != Some(&last.cgroup));
        if elsewhere
            && self.calls.is_multiple_of(OLD_PROCESS_INTERVAL)
            && let Some(pid) = self.in_preferred_cgroup()
        {
            return Ok(pid);
        }
        if self.in_doubt && self.calls.is_multiple_of(RECHECK_INTERVAL) {
            return Ok(self.likelier_than(alive)?.unwrap_or(alive));
        }
        Ok(alive)
    }

    /// The kubelet in the preferred cgroup.
    fn in_preferred_cgroup(&mut self) -> Option<u32> {
        let mut processes = cgroup::processes(self.preferred_cgroup.as_ref()?).ok()?;
        processes.retain(|pid| {
            comm(*pid).is_some_and(|comm| self.is_kubelet(&comm)) && is_our_users(*pid)
        });
        self.choose(processes).ok()
    }

    /// Another process that is clearly more likely the kubelet than `taken`; its cgroup becomes the one that is
    /// searched first.
    fn likelier_than(&mut self, taken: u32) -> Result<Option<u32>, Error> {
        let found = self.all_named();
        let candidates = self.candidates(found)?;
        let Some(taken) = candidates.iter().find(|candidate| candidate.pid == taken) else {
            return Ok(None);
        };
        let Some((best, _)) = likeliest(&candidates) else {
            return Ok(None);
        };
        if !best.is_clearly_likelier_than(taken) {
            return Ok(None);
        }
        tracing::warn!(
            pid = best.pid,
            cgroup = %best.cgroup.display(),
            before = taken.pid,
            "another process is more likely the kubelet than the current one: switching to it; set --kubelet-cgroup \
             to choose yourself"
        );
        self.in_doubt = !best.is_beyond_doubt();
        let best = best.pid;
        self.share_names_with(best)?;
        self.preferred_cgroup = Some(self.cgroup_of(best)?);
        Ok(Some(best))
    }

    fn not_found(&self) -> Error {
        Error::NotFound {
            names: self.search.names.clone(),
        }
    }

    /// The cgroup of a kubelet, whose process may end during the lookup.
    fn cgroup_of(&self, kubelet: u32) -> Result<PathBuf, Error> {
        cgroup::of_process(kubelet, &self.mount_point).map_err(|error| match start_time(kubelet) {
            Some(_) => error.into(),
            None => self.not_found(),
        })
    }

    /// Joins the kubelet's cgroup namespace, so that a container sees the same cgroup paths as the kubelet.
    fn share_names_with(&mut self, kubelet: u32) -> Result<(), Error> {
        match cgroup::join_namespace_of(kubelet) {
            Ok(false) => {}
            Ok(true) => self.mount_point = cgroup::mount_point()?,
            // If this matters, the kubelet's cgroup is not found later, and that error is reported.
            Err(error) => tracing::debug!(%error, "cannot join the kubelet's cgroup namespace"),
        }
        Ok(())
    }

    /// Whether this process is in `cgroup` or below it.
    fn within(&self, cgroup: &Path) -> bool {
        let own = cgroup::of_process(std::process::id(), &self.mount_point);
        let cgroup = std::fs::canonicalize(cgroup);
        matches!((own, cgroup), (Ok(own), Ok(cgroup)) if own.starts_with(&cgroup))
    }

    fn is_kubelet(&self, comm: &str) -> bool {
        self.search.names.iter().any(|name| truncated(name) == comm)
    }

    fn find_process(&mut self) -> Result<u32, Error> {
        self.searches = self.searches.wrapping_add(1);
        let thorough = self.searches.is_multiple_of(OLD_PROCESS_INTERVAL);
        let mut seen = BTreeMap::new();
        let mut found = Vec::new();
        for pid in processes() {
            let times = self.seen.get(&pid).copied().unwrap_or_default();
            let look = thorough || times < NEW_PROCESS_SEARCHES;
            // Any process can take a kubelet's name, but not root's user ids.
            if look && comm(pid).is_some_and(|comm| self.is_kubelet(&comm)) && is_our_users(pid) {
                found.push(pid);
            } else {
                let _ = seen.insert(pid, times.saturating_add(1));
            }
        }
        self.seen = seen;
        let pid = self.choose(found)?;
        self.share_names_with(pid)?;
        Ok(pid)
    }

    /// All processes whose name and user match the kubelet's.
    fn all_named(&self) -> Vec<u32> {
        let named = |pid: &u32| comm(*pid).is_some_and(|comm| self.is_kubelet(&comm));
        processes()
            .filter(|pid| named(pid) && is_our_users(*pid))
            .collect()
    }

    /// The process that is most likely the kubelet, of several with a kubelet's name. If they are in different cgroups,
    /// logs that once.
    fn choose(&mut self, found: Vec<u32>) -> Result<u32, Error> {
        let candidates = self.candidates(found)?;
        let (best, reason) = likeliest(&candidates).ok_or_else(|| self.not_found())?;
        if let Some(reason) = reason
            && self.logged_choice != Some(best.pid)
        {
            let pids: Vec<u32> = candidates.iter().map(|candidate| candidate.pid).collect();
            tracing::warn!(
                ?pids,
                chosen = best.pid,
                cgroup = %best.cgroup.display(),
                why = reason.text(),
                "several processes could be the kubelet, in different cgroups: using the most likely one; set \
                 --kubelet-cgroup to choose yourself"
            );
            self.logged_choice = Some(best.pid);
        }
        self.in_doubt = !best.is_beyond_doubt();
        Ok(best.pid)
    }

    /// Of the processes with a kubelet's name, those in this process's network namespace count, and none in a pod's
    /// cgroup (except on a node that is itself a pod, where all processes are in one).
    fn candidates(&mut self, found: Vec<u32>) -> Result<Vec<Candidate>, Error> {
        let mut found = oldest_first(found);
        if !is_in_pod(INIT) {
            found.retain(|pid| !is_in_pod(*pid));
        }
        let ours = NetnsId::at(Path::new("/proc/self/ns/net")).ok();
        let theirs = |pid: u32| NetnsId::at(Path::new(&format!("/proc/{pid}/ns/net"))).ok();
        let elsewhere = found.first().copied();
        found.retain(|pid| theirs(*pid) == ours);
        match (found.as_slice(), elsewhere) {
            ([], Some(pid)) => return Err(Error::OtherNetwork { pid }),
            ([], None) => return Err(self.not_found()),
            ([_], _) => {}
            // Needed to compare their cgroups.
            ([first, ..], _) => self.share_names_with(*first)?,
        }
        let mut candidates = Vec::new();
        let mut trouble = None;
        for pid in found {
            match self.candidate(pid) {
                Ok(candidate) => candidates.extend(candidate),
                Err(error) => trouble = Some(error),
            }
        }
        match trouble {
            Some(error) if candidates.is_empty() => Err(error),
            _ => Ok(candidates),
        }
    }

    /// What is known of process `pid`; `None` if it can't be the kubelet.
    fn candidate(&self, pid: u32) -> Result<Option<Candidate>, Error> {
        let executable = Executable::of(pid, &self.search.names);
        // If every process of the cgroup counts as the kubelet, an unprivileged user must not be able to pass a process
        // off as the kubelet through a set-uid program.
        if executable == Executable::SetId && !initial_pid_namespace() {
            return Ok(None);
        }
        let cgroup = self.cgroup_of(pid)?;
        let started = start_time(pid).ok_or_else(|| self.not_found())?;
        let processes = cgroup::processes(&cgroup).unwrap_or_default();
        Ok(Some(Candidate {
            pid,
            started,
            in_root: cgroup::identity(&cgroup).is_ok_and(|id| id == cgroup::ROOT),
            beside: processes.iter().filter(|other| **other != pid).count(),
            cgroup,
            executable,
        }))
    }
}

/// Those of `processes` that are running, oldest first.
fn oldest_first(processes: Vec<u32>) -> Vec<u32> {
    let mut living: Vec<(u64, u32)> = processes
        .into_iter()
        .filter_map(|pid| Some((start_time(pid)?, pid)))
        .collect();
    living.sort_unstable();
    living.into_iter().map(|(_, pid)| pid).collect()
}

/// Whether this process sees the same process ids as the programs: the initial pid namespace has a fixed
/// inode number (`PROC_PID_INIT_INO` of include/linux/proc_ns.h).
fn initial_pid_namespace() -> bool {
    const PROC_PID_INIT_INO: u64 = 0xefff_fffc;
    NetnsId::at(Path::new("/proc/self/ns/pid")).is_ok_and(|id| id.inode == PROC_PID_INIT_INO)
}

/// Truncates a name to 15 bytes, as the kernel does (`TASK_COMM_LEN`).
fn truncated(name: &str) -> &str {
    let mut end = name.len().min(15);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

fn processes() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn comm(pid: u32) -> Option<String> {
    let comm = text::read(format!("/proc/{pid}/comm")).ok()?;
    Some(comm.trim_end_matches('\n').to_owned())
}

/// Whether all user ids of the process are this process's user. The owner of /proc/PID is not enough: it is root for
/// every process that is not dumpable.
fn is_our_users(pid: u32) -> bool {
    let status = text::read(format!("/proc/{pid}/status")).unwrap_or_default();
    all_uids_are(nix::unistd::geteuid().as_raw(), &status)
}

/// Whether the real, effective, saved and file system uid in the text of a status file are all `uid`. A set-uid root
/// program runs with all of root's uids except the real one, which remains the caller's: changing that takes
/// CAP_SETUID, which only root and the program itself have. So an unprivileged user can create a matching process only
/// through a set-uid root program that also sets its real uid: see [`Executable::SetId`].
pub(crate) fn all_uids_are(uid: u32, status: &str) -> bool {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let ids: Vec<&str> = ids.unwrap_or_default().split_whitespace().collect();
    ids.len() == 4 && ids.iter().all(|id| id.parse() == Ok(uid))
}

/// The first process of the node.
const INIT: u32 = 1;

fn is_in_pod(pid: u32) -> bool {
    text::read(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| names_a_pod(&cgroups))
}

/// Field 22 of /proc/pid/stat; `None` for a process that has ended, is a zombie, or was killed and has not ended yet: one of
/// its threads may hang in the kernel (on an unreachable file server) long after its successor started.
pub(super) fn start_time(pid: u32) -> Option<u64> {
    const KILLED: u64 = 1 << (libc::SIGKILL - 1);
    let stat = text::read(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain any character, parentheses and spaces included.
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    let started = fields.nth(18)?.parse().ok()?;
    // Field 31: the thread's pending signals.
    let pending: u64 = fields.nth(8)?.parse().ok()?;
    (pending & KILLED == 0).then_some(started)
}

#[cfg(test)]
mod tests;
