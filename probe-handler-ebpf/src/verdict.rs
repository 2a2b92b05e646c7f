//! The return value of a connect program.

/// A cgroup program's verdict. `must_use`, because a program that discards its verdict would let every
/// connection through.
#[must_use]
#[derive(Clone, Copy)]
pub struct Verdict(i32);

impl Verdict {
    /// Let the connection continue to the address that is now in the context.
    pub const ALLOW: Self = Self(1);
    /// Make `connect()` fail with the value that was passed to `bpf_set_retval`, else EPERM.
    pub const DENY: Self = Self(0);
}

impl From<Verdict> for i32 {
    #[inline(always)]
    fn from(verdict: Verdict) -> Self {
        verdict.0
    }
}
