//! Finding the kubelet and its cgroup, and noticing when either changes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::kernel::cgroup;
use crate::kernel::netns::NetnsId;

/// The kubelet can't be found, or must not be attached to where it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// cgroup v2 is not as needed.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// No process of that name.
    #[error(
        "no kubelet runs in this pid namespace (looked for processes named {}): start it, run this with \
         hostPID: true, name it with --kubelet-name, or give its cgroup with --kubelet-cgroup",
        names.join(", ")
    )]
    NotFound {
        /// The names looked for.
        names: Vec<String>,
    },
    /// Several processes of that name, in different cgroups.
    #[error(
        "several kubelets run here (processes {}): choose one with --kubelet-cgroup",
        pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Ambiguous {
        /// The processes found.
        pids: Vec<u32>,
    },
    /// The cgroup given on the command line is not there.
    #[error("the cgroup {} does not exist (yet)", path.display())]
    NoCgroup {
        /// The directory.
        path: PathBuf,
    },
    /// The kubelet lives in the root cgroup, where programs of others live too.
    #[error(
        "the kubelet's cgroup is the root cgroup {}, where other systems clean up what they do not know: \
         move the kubelet into a cgroup of its own, or allow it with --allow-root-cgroup",
        path.display()
    )]
    Root {
        /// The directory.
        path: PathBuf,
    },
    /// The kubelet's network namespace is not ours.
    #[error(
        "the kubelet (process {pid}) is in another network namespace than this process: run this with \
         hostNetwork: true on the kubelet's node"
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
    /// The cgroup to use whatever process is in it.
    pub cgroup: Option<PathBuf>,
    /// Whether the root cgroup will do.
    pub allow_root: bool,
}

/// A kubelet found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubelet {
    /// Its process; none where the cgroup was given and no process of a kubelet's name is in it: then
    /// every process of the cgroup counts as the kubelet.
    pub pid: Option<u32>,
    /// Start time of the process, in clock ticks since boot: tells a process from a later one with its id.
    pub started: u64,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Tells the cgroup from a later one at the same path.
    pub cgroup_id: u64,
    /// Other processes in the same cgroup; they are left alone when `pid` is known.
    pub shared_with: usize,
}

impl Kubelet {
    /// Whether the programs would have to be told or attached anew to go from `self` to `other`.
    pub fn same_place(&self, other: &Self) -> bool {
        (self.pid, self.started, self.cgroup_id, &self.cgroup)
            == (other.pid, other.started, other.cgroup_id, &other.cgroup)
    }
}

/// Looks for the kubelet, and remembers what it need not look at again.
pub struct Finder {
    search: Search,
    mount_point: PathBuf,
    /// Processes seen twice under another name; one that has only just been forked may yet become the
    /// kubelet.
    settled: BTreeSet<u32>,
    seen: BTreeSet<u32>,
}

impl Finder {
    /// Prepares the search.
    ///
    /// # Errors
    /// [`Error::Cgroup`] when there is no cgroup v2.
    pub fn new(search: Search) -> Result<Self, Error> {
        Ok(Self {
            search,
            mount_point: cgroup::mount_point()?,
            settled: BTreeSet::new(),
            seen: BTreeSet::new(),
        })
    }

    /// Finds the kubelet as it is now. `last` is looked at first, and costs two small reads while it lives.
    ///
    /// # Errors
    /// Everything in [`Error`].
    pub fn find(&mut self, last: Option<&Kubelet>) -> Result<Kubelet, Error> {
        let (pid, cgroup) = match &self.search.cgroup {
            Some(cgroup) => {
                let processes = cgroup::processes(cgroup).map_err(|_| Error::NoCgroup {
                    path: cgroup.clone(),
                })?;
                let named = |pid: &u32| comm(*pid).is_some_and(|comm| self.is_kubelet(&comm));
                (processes.into_iter().find(named), cgroup.clone())
            }
            None => {
                let alive = last.and_then(|last| {
                    let pid = last.pid?;
                    (start_time(pid) == Some(last.started)).then_some(pid)
                });
                let pid = match alive {
                    Some(pid) => pid,
                    None => self.find_process()?,
                };
                (Some(pid), cgroup::of_process(pid, &self.mount_point)?)
            }
        };
        if cgroup == self.mount_point && !self.search.allow_root {
            return Err(Error::Root { path: cgroup });
        }
        let started = pid.and_then(start_time).unwrap_or_default();
        let cgroup_id = cgroup::identity(&cgroup).map_err(|_| Error::NoCgroup {
            path: cgroup.clone(),
        })?;
        let shared_with = match (last, pid) {
            // Counting is for people; a change of the kubelet is what matters.
            (Some(last), _) if last.pid == pid && last.cgroup_id == cgroup_id => last.shared_with,
            _ => cgroup::processes(&cgroup)
                .map(|pids| pids.iter().filter(|other| Some(**other) != pid).count())
                .unwrap_or_default(),
        };
        Ok(Kubelet {
            pid,
            started,
            cgroup,
            cgroup_id,
            shared_with,
        })
    }

    fn is_kubelet(&self, comm: &str) -> bool {
        self.search.names.iter().any(|name| truncated(name) == comm)
    }

    fn find_process(&mut self) -> Result<u32, Error> {
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for pid in processes() {
            let _ = seen.insert(pid);
            if self.settled.contains(&pid) {
                continue;
            }
            match comm(pid) {
                Some(comm) if self.is_kubelet(&comm) => found.push(pid),
                _ if self.seen.contains(&pid) => {
                    let _ = self.settled.insert(pid);
                }
                _ => {}
            }
        }
        self.settled.retain(|pid| seen.contains(pid));
        self.seen = seen;
        self.choose(found)
    }

    /// Of several processes of a kubelet's name, those in our own network namespace count; when they are
    /// all in one cgroup, the oldest is it (others are its children, about to become something else).
    fn choose(&self, found: Vec<u32>) -> Result<u32, Error> {
        let ours = NetnsId::at(Path::new("/proc/self/ns/net")).ok();
        let theirs = |pid: u32| NetnsId::at(Path::new(&format!("/proc/{pid}/ns/net"))).ok();
        let mut here: Vec<u32> = found
            .iter()
            .copied()
            .filter(|pid| theirs(*pid) == ours)
            .collect();
        here.sort_unstable_by_key(|pid| start_time(*pid));
        match (here.as_slice(), found.first()) {
            ([], None) => Err(Error::NotFound {
                names: self.search.names.clone(),
            }),
            ([], Some(pid)) => Err(Error::OtherNetwork { pid: *pid }),
            ([first, rest @ ..], _) => {
                let cgroup = cgroup::of_process(*first, &self.mount_point)?;
                let elsewhere = rest.iter().any(|pid| {
                    cgroup::of_process(*pid, &self.mount_point).is_ok_and(|other| other != cgroup)
                });
                if elsewhere {
                    Err(Error::Ambiguous { pids: here })
                } else {
                    Ok(*first)
                }
            }
        }
    }
}

/// The kernel keeps 15 bytes of a name (`TASK_COMM_LEN`).
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
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(comm.trim_end_matches('\n').to_owned())
}

/// Field 22 of /proc/pid/stat; none for a process that is gone or a zombie.
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, parentheses and spaces included.
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_start_time() {
        let own = std::process::id();
        assert_eq!(start_time(own), start_time(own));
        assert!(start_time(own).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_time(u32::MAX), None);
    }

    #[test]
    fn names_are_compared_as_the_kernel_keeps_them() {
        assert_eq!(truncated("kubelet"), "kubelet");
        assert_eq!(truncated("kubelet-stand-in-4711"), "kubelet-stand-i");
    }

    #[test]
    fn no_kubelet_is_an_error_that_names_the_names() {
        let Ok(mut finder) = Finder::new(Search {
            names: vec!["no-such-process".into()],
            cgroup: None,
            allow_root: false,
        }) else {
            return; // no cgroup v2 here: the next test says so
        };
        let error = finder.find(None).expect_err("nothing is named so");
        assert!(error.to_string().contains("no-such-process"), "{error}");
    }
}
