//! The capabilities that the daemon needs, the reason for each, and how the daemon drops all others.
//!
//! Root in a privileged container has all capabilities. After its start the daemon needs few of them, and
//! drops the rest permanently from every set of every thread, so that neither a vulnerability in the daemon
//! nor a program that an attacker makes it start can regain them.

use std::io::{self, Write as _};

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// A capability, and what it is needed for.
#[derive(Debug)]
pub struct Need {
    /// The capability.
    pub capability: Capability,
    /// What it is needed for.
    pub reason: &'static str,
}

/// The capabilities that the agent needs for as long as it runs. It does not start without them.
///
/// CAP_BPF is not among them: CAP_SYS_ADMIN, which `setns` requires, includes it on every kernel
/// (include/linux/capability.h, `bpf_capable`).
pub const KEPT: [Need; 5] = [
    Need {
        capability: Capability::CAP_SYS_ADMIN,
        reason: "enter the network namespaces of pods (setns), load and attach eBPF programs",
    },
    Need {
        capability: Capability::CAP_NET_ADMIN,
        reason: "assign ids to pods' network namespaces (RTM_NEWNSID), and install rules in them with --kernel-path",
    },
    Need {
        capability: Capability::CAP_SYS_PTRACE,
        reason: "open the network namespaces of other users' processes (/proc/PID/ns/net)",
    },
    Need {
        capability: Capability::CAP_SETUID,
        reason: "dial Consul's pods with the proxy's fsuid",
    },
    Need {
        capability: Capability::CAP_DAC_READ_SEARCH,
        reason: "read cgroups, manifests and tokens of every user",
    },
];

/// Capabilities that the agent uses at its start, if it has them, and then drops.
pub const AT_START: [Need; 1] = [Need {
    capability: Capability::CAP_SYS_RESOURCE,
    reason: "raise RLIMIT_MEMLOCK, to which maps are charged before Linux 5.11",
}];

/// Those of [`KEPT`] that this thread lacks.
pub fn missing() -> Vec<&'static Need> {
    let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
    KEPT.iter()
        .filter(|need| !effective.contains(&need.capability))
        .collect()
}

/// The calling thread's effective capabilities, for the log.
pub fn effective() -> Vec<String> {
    let mut names: Vec<String> = caps::read(None, CapSet::Effective)
        .unwrap_or_default()
        .into_iter()
        .map(|capability| capability.to_string())
        .collect();
    names.sort_unstable();
    names
}

/// Drops all capabilities except [`KEPT`] for the calling thread and the threads that it starts later, and
/// prevents regaining others by executing a program (`PR_SET_NO_NEW_PRIVS`).
///
/// Without CAP_SETPCAP the bounding set stays unchanged, which has no effect because of `PR_SET_NO_NEW_PRIVS`.
///
/// # Errors
/// Those of prctl(2) and capset(2).
pub fn give_up_others() -> io::Result<()> {
    let error = |error: CapsError| io::Error::other(error.to_string());
    let permitted = caps::read(None, CapSet::Permitted).map_err(error)?;
    let kept: CapsHashSet = KEPT
        .iter()
        .map(|need| need.capability)
        .filter(|capability| permitted.contains(capability))
        .collect();
    nix::sys::prctl::set_no_new_privs()?;
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(error)? {
        for capability in caps::runtime::thread_all_supported().difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(error)?;
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(error)?;
    caps::clear(None, CapSet::Inheritable).map_err(error)?;
    caps::set(None, CapSet::Effective, &kept).map_err(error)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(error)
}

/// [`give_up_others`] for a thread that can't return an error: on failure it aborts the process, because the
/// daemon would otherwise report capabilities that differ from those of its threads.
pub fn give_up_others_or_abort() {
    if let Err(error) = give_up_others() {
        // Does not use the log, because another thread writes its lines.
        let _ = writeln!(
            io::stderr(),
            "cannot drop capabilities of a thread: aborting: {error}"
        );
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(needs: &[Need]) -> BTreeSet<String> {
        needs
            .iter()
            .map(|need| need.capability.to_string())
            .collect()
    }

    fn repository(path: &str) -> String {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .join(path);
        std::fs::read_to_string(&path).expect("a file of the repository")
    }

    #[test]
    fn a_thread_keeps_only_the_needed_capabilities_of_those_it_had() {
        // On a separate thread, because dropped capabilities can't be regained.
        let check = || {
            let before = caps::read(None, CapSet::Permitted).expect("capabilities");
            give_up_others().expect("dropped");
            let kept: CapsHashSet = KEPT.iter().map(|need| need.capability).collect();
            let expected: CapsHashSet = before.intersection(&kept).copied().collect();
            for set in [CapSet::Effective, CapSet::Permitted] {
                assert_eq!(caps::read(None, set).expect("capabilities"), expected);
            }
            for set in [CapSet::Inheritable, CapSet::Ambient] {
                assert!(caps::read(None, set).expect("capabilities").is_empty());
            }
            assert!(nix::sys::prctl::get_no_new_privs().expect("a flag"));
            // A second call has nothing to drop.
            give_up_others().expect("dropped");
        };
        std::thread::spawn(check).join().expect("no panic");
    }

    #[test]
    fn the_overlay_least_privilege_adds_exactly_the_needed_capabilities() {
        let overlay = repository("deploy/components/least-privilege/kustomization.yaml");
        let added = overlay
            .lines()
            .find_map(|line| line.trim().strip_prefix("add: ["))
            .and_then(|list| list.strip_suffix(']'))
            .expect("a list of capabilities");
        let added: BTreeSet<String> = added
            .split(',')
            .map(|name| format!("CAP_{}", name.trim()))
            .collect();
        assert_eq!(added, names(&KEPT));
    }

    #[test]
    fn the_documentation_explains_each_capability() {
        let text = repository("docs/security.md");
        for name in &names(&KEPT) | &names(&AT_START) {
            let row = format!("| {name} |");
            assert!(text.lines().any(|line| line.starts_with(&row)), "{name}");
        }
    }
}
