//! What the programs count.

/// Index into `COUNTERS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Connections to an endpoint of ours, by the kubelet.
    Seen = 0,
    /// Sent to the handler.
    Redirected = 1,
    /// Refused in the kernel: the mesh listens, the app does not.
    Refused = 2,
    /// Left alone because the handler does not listen.
    Fallback = 3,
    /// Left alone because neither the app nor the mesh listens in the pod's network namespace.
    NoListener = 4,
    /// Left alone because another process of the kubelet's cgroup connected, or one in a network
    /// namespace of its own.
    OtherProcess = 5,
    /// A map was full or a helper failed: left alone, or sent to the handler, which then does not know it.
    Error = 6,
    /// Left alone because the handler gave no sign of life for too long, or wants no connections.
    NoHeartbeat = 7,
    /// Connections that are to be kept out of the mesh's redirect: noted before their SYN.
    Recorded = 8,
    /// Those of them whose SYN arrived in a pod with our rules, each once. Fewer than recorded: something between
    /// kubelet and pod changes addresses, or the pod has lost its rules.
    Exempt = 9,
}

impl Counter {
    /// How many there are.
    pub const COUNT: u32 = 10;
    /// All of them, by index.
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
