//! Definitions shared by probe-handler's eBPF programs and its daemon: map types, names and capacities,
//! and the pure functions that decide over them.
//!
//! All map types consist of integers (`#[repr(C)]`, no implicit padding), so that both compilers use
//! the same layout.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod address;
pub mod answer;
pub mod config;
pub mod connecting;
pub mod counters;
pub mod endpoint;
pub mod flow;
pub mod gate;
pub mod heartbeat;
pub mod outcome;
pub mod priority;
pub mod spread;

/// Names of the maps in the eBPF object.
pub mod maps {
    /// Probed (address, port) pairs: [`crate::address::SockAddr`] to [`crate::endpoint::EndpointValue`].
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Socket cookie (`u64`) to the [`crate::flow::Original`] destination of a socket that connects to an endpoint.
    pub const SOCKETS: &str = "SOCKETS";
    /// [`crate::flow::FlowKey`] of a redirected connection to its [`crate::flow::Flow`].
    pub const FLOWS: &str = "FLOWS";
    /// One [`crate::config::Config`] at index 0.
    pub const CONFIG: &str = "CONFIG";
    /// `u64`, nanoseconds of the kernel's monotonic clock, by the indices in [`crate::heartbeat`]: at the first, the time of
    /// the handler's last heartbeat; [`crate::heartbeat::STOPPED`] while the handler accepts no connections.
    pub const HEARTBEAT: &str = "HEARTBEAT";
    /// [`crate::connecting::Tuple`] of a connection that is exempt from the mesh's redirect, while the kubelet's socket is
    /// in SYN_SENT, to its [`crate::connecting::Connecting`].
    pub const CONNECTING: &str = "CONNECTING";
    /// Name of the pin of `CONNECTING`. The number is the version of its layout: increase it with every
    /// change of [`crate::connecting::Tuple`], [`crate::connecting::Connecting`] or the capacity.
    pub const CONNECTING_PIN: &str = "connecting-1";
    /// One [`crate::priority::Key`] at index 0.
    pub const CLASSIFY_KEY: &str = "CLASSIFY_KEY";
    /// Name of the pin of `CLASSIFY_KEY`. Increase the number with every change of the key, or of how it is used.
    pub const CLASSIFY_KEY_PIN: &str = "classify-key-1";
    /// Socket cookie (`u64`) to the [`crate::answer::Answer`] of a connection on the kernel path whose answer is being read.
    pub const ANSWERS: &str = "ANSWERS";
    /// Per-CPU `u64` counters, indexed by [`crate::counters::Counter`].
    pub const COUNTERS: &str = "COUNTERS";

    /// Ring buffer of [`crate::outcome::Outcome`].
    pub const OUTCOMES: &str = "OUTCOMES";

    /// Size of `OUTCOMES` in bytes: a power of two, and a multiple of every page size. If it is full, the
    /// record is lost; the connection is not affected.
    pub const OUTCOMES_BYTES: u32 = 64 * 1024;
    /// Default capacity of `ENDPOINTS`; can be set when loading.
    pub const ENDPOINTS_CAPACITY: u32 = 16_384;
    /// Minimum capacity of `SOCKETS`: the kubelet's concurrent connections to endpoints. If an entry is evicted before
    /// the end of the handshake, the handler resets the connection (no flow); later only `getpeername` is wrong.
    pub const SOCKETS_CAPACITY: u32 = 16_384;
    /// Minimum capacity of `FLOWS`. Entries exist from the handshake to accept.
    pub const FLOWS_CAPACITY: u32 = 16_384;
    /// Capacity of `CONNECTING`: the kubelet's sockets that are in SYN_SENT at the same time. Entries are deleted, never evicted.
    pub const CONNECTING_CAPACITY: u32 = 8_192;
    /// Capacity of `ANSWERS`: the kubelet's connections whose answer is awaited at the same time. Entries are deleted, never
    /// evicted. If it is full, the result of a probe is unknown.
    pub const ANSWERS_CAPACITY: u32 = 4_096;
    /// Minimum capacity of an LRU map for each possible CPU. Before Linux 6.12 each CPU reserves up to 128 free slots,
    /// and a map with fewer than 170 slots per CPU evicts live entries while it is nearly empty (seen on 5.10 and 6.1
    /// with 192 CPUs).
    pub const LRU_CAPACITY_PER_CPU: u32 = 256;
}

/// Names of the programs in the eBPF object.
pub mod programs {
    /// `cgroup/connect4`.
    pub const CONNECT4: &str = "connect4";
    /// `cgroup/connect6`.
    pub const CONNECT6: &str = "connect6";
    /// `sockops`.
    pub const SOCK_OPS: &str = "sock_ops";
    /// `cgroup/getpeername4`.
    pub const GETPEERNAME4: &str = "getpeername4";
    /// `cgroup/getpeername6`.
    pub const GETPEERNAME6: &str = "getpeername6";
    /// `socket`: writes the time of the handler's heartbeat. Attached to a socket of the daemon, not to the cgroup.
    pub const HEARTBEAT: &str = "heartbeat";
    /// `socket`: whether a packet is the SYN of a connection in `CONNECTING`. Rules in pods call it.
    pub const EXEMPT: &str = "exempt";
    /// Name of the pin of `EXEMPT`. The number is that of [`crate::maps::CONNECTING_PIN`]: until the programs of another layout
    /// are attached, the rules must call the program that looks into the map of those that are.
    pub const EXEMPT_PIN: &str = "exempt-1";
    /// `classifier`: the same at tc ingress of pods' interfaces, for rules that can't call `exempt`: sets the packet's priority.
    /// Optional.
    pub const CLASSIFY: &str = "classify";
    /// `cgroup_skb/ingress`: reads the answers of apps on the kernel path. Optional: attached last, if the kernel loads it.
    pub const ANSWER: &str = "answer";
    /// The programs for the kubelet's cgroup that must be attached, in their order: the programs that identify
    /// redirected connections are in place before the first connection is redirected.
    pub const ATTACH_ORDER: [&str; 5] = [SOCK_OPS, GETPEERNAME4, GETPEERNAME6, CONNECT4, CONNECT6];
    /// All programs for the kubelet's cgroup, in the order in which they are attached.
    pub const ALL: [&str; 6] = [
        SOCK_OPS,
        GETPEERNAME4,
        GETPEERNAME6,
        CONNECT4,
        CONNECT6,
        ANSWER,
    ];
}

/// Names of the read-only globals set at load.
pub mod globals {
    /// `u8`: 1 if connect programs may call `bpf_set_retval` (Linux 6.1), so that a refusal is
    /// ECONNREFUSED; 0 makes it EPERM.
    pub const HAS_SET_RETVAL: &str = "HAS_SET_RETVAL";
}
