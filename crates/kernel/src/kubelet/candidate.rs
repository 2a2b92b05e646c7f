//! Chooses the most likely one of several processes that could be the kubelet.
//!
//! All candidates run as root. So a wrong one is either started by root by accident (a kubelet that was started by
//! hand, a script with that name), or a set-uid program that has set its real uid to root's too.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::truncated;

/// A process that could be the kubelet, and the properties by which candidates are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The process.
    pub pid: u32,
    /// Its start time.
    pub started: u64,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Whether its cgroup is the root cgroup.
    pub in_root: bool,
    /// Number of other processes in its cgroup.
    pub beside: usize,
    /// The kind of file that it executes.
    pub executable: Executable,
}

/// The kind of file that a process executes; the most likely for a kubelet first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Executable {
    /// A file with a kubelet's name.
    Kubelet,
    /// A file with another name: a script's interpreter, or a link's target.
    Other,
    /// The file can't be examined.
    Unknown,
    /// A set-uid or set-gid file, which any user may execute through a link of any name; no kubelet is such a file.
    SetId,
}

/// Why one candidate is preferred to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// [`Candidate::executable`].
    Executable,
    /// [`Candidate::in_root`].
    OutsideRoot,
    /// [`Candidate::beside`].
    FewerBeside,
    /// [`Candidate::started`].
    Older,
}

// === impl Candidate ===

impl Candidate {
    /// The lower, the more likely the process is the kubelet.
    fn rank(&self) -> (Executable, bool, usize, u64, u32) {
        (
            self.executable,
            self.in_root,
            self.beside,
            self.started,
            self.pid,
        )
    }

    /// Whether it is more likely the kubelet than `other` by properties that stay the same (unlike age and the number
    /// of other processes in the cgroup): reason enough to switch from `other` to it.
    pub fn is_clearly_likelier_than(&self, other: &Self) -> bool {
        (self.executable, self.in_root) < (other.executable, other.in_root)
    }

    /// Whether no other process could be clearly more likely.
    pub fn is_beyond_doubt(&self) -> bool {
        self.executable == Executable::Kubelet && !self.in_root
    }
}

/// The most likely of `candidates`, and why it is preferred to the next one in another cgroup, if there is one.
pub fn likeliest(candidates: &[Candidate]) -> Option<(&Candidate, Option<Reason>)> {
    let best = candidates.iter().min_by_key(|candidate| candidate.rank())?;
    let next = candidates
        .iter()
        .filter(|candidate| candidate.cgroup != best.cgroup)
        .min_by_key(|candidate| candidate.rank());
    Some((best, next.map(|next| reason(best, next))))
}

fn reason(best: &Candidate, next: &Candidate) -> Reason {
    if best.executable != next.executable {
        Reason::Executable
    } else if best.in_root != next.in_root {
        Reason::OutsideRoot
    } else if best.beside != next.beside {
        Reason::FewerBeside
    } else {
        Reason::Older
    }
}

// === impl Reason ===

impl Reason {
    /// Text for the log.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Executable => "its executable is the most likely to be a kubelet",
            Self::OutsideRoot => "it is not in the root cgroup",
            Self::FewerBeside => "its cgroup has fewer other processes",
            Self::Older => "it started first",
        }
    }
}

// === impl Executable ===

impl Executable {
    /// The executable of process `pid`, given the process names of kubelets.
    pub fn of(pid: u32, names: &[String]) -> Self {
        let link = format!("/proc/{pid}/exe");
        // The link leads to the file itself, even if the file was removed.
        let file = std::fs::read_link(&link)
            .and_then(|path| Ok((path, std::fs::metadata(&link)?)))
            .ok();
        Self::judge(
            file.as_ref()
                .map(|(path, metadata)| (path.as_path(), metadata.mode())),
            names,
        )
    }

    /// The kind of a file, given its path as /proc shows it and its mode; `None`: it can't be examined.
    fn judge(file: Option<(&Path, u32)>, names: &[String]) -> Self {
        let Some((path, mode)) = file else {
            return Self::Unknown;
        };
        if mode & (libc::S_ISUID | libc::S_ISGID) != 0 {
            return Self::SetId;
        }
        let name = path.file_name().and_then(|name| name.to_str());
        match name {
            Some(name) if is_kubelets(name, names) => Self::Kubelet,
            _ => Self::Other,
        }
    }
}

/// Whether an executable with this name is a kubelet's, given the process names of kubelets. A k3s process is named
/// after its component (`k3s-server`), and old kubelets are links to hyperkube.
fn is_kubelets(file: &str, names: &[String]) -> bool {
    let file = file.strip_suffix(" (deleted)").unwrap_or(file);
    names.iter().any(|name| {
        truncated(name) == truncated(file)
            || (file == "k3s" && name.starts_with("k3s-"))
            || (file == "hyperkube" && name == "kubelet")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(pid: u32, cgroup: &str) -> Candidate {
        Candidate {
            pid,
            started: 100,
            cgroup: cgroup.into(),
            in_root: false,
            beside: 0,
            executable: Executable::Kubelet,
        }
    }

    fn chosen(candidates: &[Candidate]) -> Option<(u32, Option<Reason>)> {
        likeliest(candidates).map(|(best, reason)| (best.pid, reason))
    }

    #[test]
    fn the_executable_is_compared_first() {
        let order = [
            Executable::Kubelet,
            Executable::Other,
            Executable::Unknown,
            Executable::SetId,
        ];
        for pair in order.windows(2) {
            let likely = Candidate {
                executable: pair[0],
                in_root: true,
                beside: 9,
                started: 200,
                ..candidate(1, "/")
            };
            let unlikely = Candidate {
                executable: pair[1],
                ..candidate(2, "/b")
            };
            let expected = Some((1, Some(Reason::Executable)));
            assert_eq!(chosen(&[unlikely, likely]), expected, "{pair:?}");
        }
    }

    #[test]
    fn the_cgroup_is_compared_second() {
        let root = Candidate {
            in_root: true,
            started: 50,
            ..candidate(1, "/")
        };
        let shared = Candidate {
            beside: 3,
            started: 50,
            ..candidate(2, "/session")
        };
        let own = candidate(3, "/own");
        let all = [root.clone(), shared.clone(), own];
        assert_eq!(chosen(&all), Some((3, Some(Reason::FewerBeside))));
        assert_eq!(
            chosen(&[root, shared]),
            Some((2, Some(Reason::OutsideRoot)))
        );
    }

    #[test]
    fn of_equal_candidates_the_oldest_is_chosen() {
        let old = Candidate {
            started: 50,
            ..candidate(2, "/old")
        };
        assert_eq!(
            chosen(&[candidate(1, "/new"), old]),
            Some((2, Some(Reason::Older)))
        );
    }

    #[test]
    fn candidates_in_one_cgroup_need_no_reason() {
        let child = Candidate {
            started: 200,
            ..candidate(2, "/own")
        };
        assert_eq!(chosen(&[child, candidate(1, "/own")]), Some((1, None)));
        assert_eq!(chosen(&[]), None);
    }

    #[test]
    fn age_and_number_of_other_processes_are_no_reason_to_switch() {
        let other = Candidate {
            started: 50,
            ..candidate(2, "/b")
        };
        let taken = Candidate {
            beside: 3,
            ..candidate(1, "/a")
        };
        assert!(!other.is_clearly_likelier_than(&taken));
        let script = Candidate {
            executable: Executable::Other,
            ..taken
        };
        assert!(other.is_clearly_likelier_than(&script));
        assert!(other.is_beyond_doubt() && !script.is_beyond_doubt());
    }

    #[test]
    fn executables_are_judged_by_name_and_mode() {
        let names = ["kubelet", "kubelite", "k3s-server"].map(str::to_owned);
        for (path, mode, expected) in [
            ("/usr/bin/kubelet", 0o755, Executable::Kubelet),
            ("/usr/bin/kubelet (deleted)", 0o755, Executable::Kubelet),
            ("/snap/bin/kubelite", 0o755, Executable::Kubelet),
            ("/usr/local/bin/k3s", 0o755, Executable::Kubelet),
            ("/hyperkube", 0o755, Executable::Kubelet),
            ("/bin/bash", 0o755, Executable::Other),
            ("/usr/bin/kubelet", 0o4755, Executable::SetId),
            ("/usr/bin/kubelet", 0o2755, Executable::SetId),
        ] {
            let judged = Executable::judge(Some((Path::new(path), mode)), &names);
            assert_eq!(judged, expected, "{path} {mode:o}");
        }
        assert_eq!(Executable::judge(None, &names), Executable::Unknown);
        let path = Some((Path::new("/usr/local/bin/k3s"), 0o755));
        let judged = Executable::judge(path, &["kubelet".to_owned()]);
        assert_eq!(judged, Executable::Other);
        assert_eq!(
            Executable::of(std::process::id(), &names),
            Executable::Other
        );
    }
}
