//! What the daemon tells its own programs.

/// The single entry of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The handler's port on 127.0.0.1, host byte order; 0: none, IPv4 endpoints are left alone.
    pub handler_port_v4: u32,
    /// The handler's port on ::1, host byte order; 0: none, IPv6 endpoints are left alone.
    pub handler_port_v6: u32,
    /// Thread group id of the kubelet in the initial pid namespace; 0: every process of the cgroup.
    pub kubelet_pid: u32,
    /// 1: log every decision through aya-log.
    pub verbose: u32,
}

const _: () = assert!(size_of::<Config>() == 16);

// SAFETY: `Config` is `repr(C)`, made of `u32` only, 16 bytes with no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Config {}
