//! What the daemon tells its own programs.

/// The single entry of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The handler's port on 127.0.0.1, host byte order; 0: none, IPv4 endpoints are left alone.
    pub handler_port_v4: u32,
    /// The first of the handler's [`HANDLER_PORTS_V6`](crate::spread::HANDLER_PORTS_V6) ports on ::1, host byte
    /// order; 0: none, IPv6 endpoints are left alone.
    pub handler_port_v6: u32,
    /// Thread group id of the kubelet in the initial pid namespace; 0: every process of the cgroup.
    pub kubelet_pid: u32,
    /// 1: log every decision through aya-log.
    pub verbose: u32,
    /// Cookie of the kubelet's network namespace (SO_NETNS_COOKIE): sockets of others, such as containers
    /// below the cgroup, are left alone. 0: not known (before Linux 5.14).
    pub netns_cookie: u64,
    /// How old the handler's heartbeat may be, nanoseconds. Older: all endpoints are left alone.
    pub heartbeat_timeout_ns: u64,
    /// How long the programs serve without a daemon, nanoseconds. Then all endpoints are left alone. 0: for ever.
    pub outlive_ns: u64,
}

const _: () = assert!(size_of::<Config>() == 40);

// SAFETY: `Config` is `repr(C)`, integers only; 16 bytes of `u32` then three `u64`, no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Config {}
