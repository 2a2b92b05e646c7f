//! The capabilities that the daemon needs, and why.

use caps::{CapSet, Capability};

/// A capability, and what fails without it.
pub struct Need {
    /// The capability.
    pub capability: Capability,
    /// What it is for.
    pub reason: &'static str,
}

/// What the agent needs.
pub const NEEDED: [Need; 6] = [
    Need {
        capability: Capability::CAP_BPF,
        reason: "make maps, load programs",
    },
    Need {
        capability: Capability::CAP_NET_ADMIN,
        reason: "attach programs to the kubelet's cgroup, assign network namespace ids",
    },
    Need {
        capability: Capability::CAP_SYS_ADMIN,
        reason: "enter the network namespaces of pods (setns)",
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
        reason: "read cgroups and /proc of every user",
    },
];

/// Those of [`NEEDED`] that this thread lacks. Before Linux 5.8 CAP_SYS_ADMIN stands for CAP_BPF.
pub fn missing() -> Vec<&'static Need> {
    let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
    let has = |capability: Capability| {
        effective.contains(&capability)
            || (capability == Capability::CAP_BPF && effective.contains(&Capability::CAP_SYS_ADMIN))
    };
    NEEDED.iter().filter(|need| !has(need.capability)).collect()
}

/// The thread's effective capabilities, for the log.
pub fn effective() -> Vec<String> {
    let mut names: Vec<String> = caps::read(None, CapSet::Effective)
        .unwrap_or_default()
        .into_iter()
        .map(|capability| capability.to_string())
        .collect();
    names.sort_unstable();
    names
}
