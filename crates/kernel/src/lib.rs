//! Everything that uses kernel interfaces directly: eBPF programs and maps, the kubelet's cgroup, network
//! namespaces, the in-pod dial.

pub mod address_watch;
pub mod addresses;
pub mod attach_conflicts;
pub mod canary;
pub mod capabilities;
pub mod cgroup;
mod cgroup_programs;
mod conntrack;
pub mod cputime;
pub mod dial;
pub mod exemption;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod heartbeat;
pub mod kubelet;
pub mod locate;
pub mod loopback;
pub mod maps;
mod mountinfo;
pub mod nat_trial;
pub mod netlink;
pub mod netns;
pub mod nsid;
pub mod orphans;
pub mod pins;
pub mod programs;
pub mod scheduling;
pub mod sockdiag;
mod subscription;
mod text;
mod userns;
