//! All that touches the kernel: programs and maps, the kubelet's cgroup, network namespaces, the
//! in-pod dial.

pub mod cgroup;
pub mod dial;
pub mod kubelet;
pub mod maps;
pub mod netns;
pub mod nsid;
pub mod programs;
pub mod sockdiag;
