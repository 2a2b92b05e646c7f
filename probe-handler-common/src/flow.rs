//! The record of a redirected connection.

use crate::address::SockAddr;

/// Where a redirected socket wanted to go. Value of `SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// The endpoint the kubelet dialled.
    pub destination: SockAddr,
}

const _: () = assert!(size_of::<Original>() == 20);

// SAFETY: `Original` is `repr(C)` around one `SockAddr`, 20 bytes with no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Original {}

/// A redirected connection as the handler finds it. Value of `FLOWS`, written by our hook only and
/// consumed on use: it is what tells the kubelet's connection from any other local process's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The endpoint the kubelet dialled.
    pub original: SockAddr,
    /// 1 once the kubelet's socket is closed: the port may be another process's by now.
    pub closed: u32,
    /// Cookie of the kubelet's socket.
    pub cookie: u64,
    /// When the connection was made, nanoseconds of CLOCK_MONOTONIC.
    pub created_ns: u64,
}

const _: () = assert!(size_of::<Flow>() == 40);

// SAFETY: `Flow` is `repr(C)`, integers only; 24 bytes of `u32` then two `u64`, no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Flow {}

/// How long a flow is good for: the time between connect and accept.
pub const FLOW_TTL_NS: u64 = 5_000_000_000;

/// What the handler may do for an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// The kubelet's connection, alive.
    Fresh,
    /// The kubelet's connection, already closed by it: good for a TCP probe's verdict, for nothing else.
    Closed,
    /// Too old: whoever connects now may be someone else.
    Stale,
}

impl Flow {
    /// Judges the flow at `now_ns` (CLOCK_MONOTONIC).
    pub const fn state(&self, now_ns: u64) -> FlowState {
        if now_ns.saturating_sub(self.created_ns) > FLOW_TTL_NS {
            FlowState::Stale
        } else if self.closed != 0 {
            FlowState::Closed
        } else {
            FlowState::Fresh
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(closed: u32) -> Flow {
        Flow {
            original: SockAddr::v4(1, 80),
            closed,
            cookie: 7,
            created_ns: 1_000,
        }
    }

    #[test]
    fn a_flow_is_fresh_until_its_time_is_over() {
        assert_eq!(flow(0).state(1_000 + FLOW_TTL_NS), FlowState::Fresh);
        assert_eq!(flow(0).state(1_001 + FLOW_TTL_NS), FlowState::Stale);
        // The two clocks are read on different CPUs: a little "before" is not an underflow.
        assert_eq!(flow(0).state(0), FlowState::Fresh);
    }

    #[test]
    fn a_closed_flow_is_never_fresh() {
        assert_eq!(flow(1).state(1_000), FlowState::Closed);
        assert_eq!(flow(1).state(u64::MAX), FlowState::Stale);
    }
}
