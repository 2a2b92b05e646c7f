//! The daemon's configuration of its programs.

use crate::spread::HANDLER_PORTS_V6;

/// The single entry of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The handler's port on 127.0.0.1, host byte order; 0: none, connections to IPv4 endpoints are unchanged.
    pub handler_port_v4: u16,
    /// 1: log every decision through aya-log.
    pub verbose: u8,
    /// 1: program `answer` is attached, and reads the answers of apps on the kernel path.
    pub reads_answers: u8,
    /// Thread group id of the kubelet in the initial pid namespace; 0: every process of the cgroup.
    pub kubelet_pid: u32,
    /// Cookie of the kubelet's network namespace (SO_NETNS_COOKIE): connections of sockets in other namespaces,
    /// such as those of containers below the cgroup, are unchanged. 0: not known (before Linux 5.14).
    pub netns_cookie: u64,
    /// Maximum age of the handler's heartbeat, nanoseconds. If it is older, no connection is redirected.
    pub heartbeat_timeout_ns: u64,
    /// How long the programs keep working without a daemon, nanoseconds. After that all connections are unchanged. 0: forever.
    pub outlive_ns: u64,
    /// The handler's ports on ::1, host byte order; 0: none, connections to IPv6 endpoints are unchanged.
    pub handler_ports_v6: [u16; HANDLER_PORTS_V6 as usize],
}

const _: () = assert!(size_of::<Config>() == 64);

// SAFETY: `Config` is `repr(C)`, contains only integers: one `u16`, two `u8`, one `u32`, three `u64`, sixteen `u16`, without padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Config {}
