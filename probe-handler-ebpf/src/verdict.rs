//! What a connect program returns.

/// A cgroup program's verdict. `must_use`, for a verdict that is computed and dropped would let
/// every connection through.
#[must_use]
#[derive(Clone, Copy)]
pub struct Verdict(i32);

impl Verdict {
    /// Let the connection go on, to the address now in the context.
    pub const ALLOW: Self = Self(1);
    /// Make `connect()` fail: with the value given to `bpf_set_retval`, else EPERM.
    pub const DENY: Self = Self(0);
}

impl From<Verdict> for i32 {
    #[inline(always)]
    fn from(verdict: Verdict) -> Self {
        verdict.0
    }
}
