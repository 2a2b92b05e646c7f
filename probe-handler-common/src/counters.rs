//! The programs' counters.

/// Index into `COUNTERS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Connections from the kubelet to an endpoint in `ENDPOINTS`.
    Seen = 0,
    /// Redirected to the handler.
    Redirected = 1,
    /// Refused in the kernel, because the mesh listens and the app does not.
    Refused = 2,
    /// Not redirected, because the handler does not listen.
    Fallback = 3,
    /// Unchanged, because neither the app nor the mesh listens in the pod's network namespace.
    NoListener = 4,
    /// Unchanged, because another process of the kubelet's cgroup connected, or one in a different network
    /// namespace.
    OtherProcess = 5,
    /// A map was full or a helper failed: unchanged, or redirected to the handler, which then resets the connection.
    Error = 6,
    /// Not redirected, because the handler's heartbeat is too old, or the handler accepts no connections.
    NoHeartbeat = 7,
    /// Connections exempt from the mesh's redirect: recorded in `CONNECTING` before their SYN.
    Recorded = 8,
    /// Recorded connections whose SYN arrived in a pod with our rules, each counted once. If there are fewer than
    /// recorded, something between kubelet and pod changes addresses, or the pod has lost its rules.
    Exempt = 9,
    /// Refused connections that were opened anyway, because a program on a parent cgroup set another return value.
    RefusalUndone = 10,
}

impl Counter {
    /// The number of counters.
    pub const COUNT: u32 = 11;
    /// All counters, by index.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::Seen,
        Self::Redirected,
        Self::Refused,
        Self::Fallback,
        Self::NoListener,
        Self::OtherProcess,
        Self::Error,
        Self::NoHeartbeat,
        Self::Recorded,
        Self::Exempt,
        Self::RefusalUndone,
    ];

    /// Name in metrics and `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Redirected => "redirected",
            Self::Refused => "refused",
            Self::Fallback => "fallback",
            Self::NoListener => "no_listener",
            Self::OtherProcess => "other_process",
            Self::Error => "error",
            Self::NoHeartbeat => "no_heartbeat",
            Self::Recorded => "recorded",
            Self::Exempt => "exempt",
            Self::RefusalUndone => "refusal_undone",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_every_counter_at_its_index() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
