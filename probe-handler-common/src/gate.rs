//! What to do with the kubelet's connection to an endpoint.

use crate::endpoint::{GATE, KERNEL, REDIRECT};

/// The verdict of a connect program. `must_use`: a verdict thrown away lets a connection through
/// that should have been refused.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// As if we were absent.
    Leave(LeaveReason),
    /// ECONNREFUSED in the kernel: the mesh would have accepted for a dead app.
    Refuse,
    /// To the handler.
    Redirect,
    /// To the pod, past the mesh: the kubelet's own connection is kept out of the redirect.
    Exempt,
}

/// Why a connection to an endpoint is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveReason {
    /// Neither app nor mesh listens in the namespace: plain networking tells the truth, and the
    /// sockets of a sandboxed runtime (gVisor, Kata) are not ours to see.
    NoListener,
    /// The daemon gives no sign of life: what its maps say may be untrue by now.
    NoHeartbeat,
    /// The handler does not listen.
    Fallback,
    /// The endpoint asks for nothing more.
    Passed,
}

/// Decides; each listener is looked for only when its answer matters.
#[inline(always)]
pub fn decide(
    flags: u32,
    is_alive: bool,
    app_listens: impl FnOnce() -> bool,
    mesh_listens: impl FnOnce() -> bool,
    handler_listens: impl FnOnce() -> bool,
) -> Decision {
    let otherwise = |why| {
        if flags & KERNEL == 0 {
            Decision::Leave(why)
        } else {
            Decision::Exempt
        }
    };
    if flags & (KERNEL | REDIRECT) == KERNEL {
        return Decision::Exempt;
    }
    if !is_alive {
        return otherwise(LeaveReason::NoHeartbeat);
    }
    if flags & GATE != 0 && !app_listens() {
        return if mesh_listens() {
            Decision::Refuse
        } else {
            otherwise(LeaveReason::NoListener)
        };
    }
    if flags & REDIRECT == 0 {
        return Decision::Leave(LeaveReason::Passed);
    }
    if handler_listens() {
        Decision::Redirect
    } else {
        otherwise(LeaveReason::Fallback)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(flags: u32, app: bool, mesh: bool, handler: bool, expect: Decision) {
        assert_eq!(decide(flags, true, || app, || mesh, || handler), expect);
    }

    #[test]
    fn refuses_only_where_the_mesh_would_lie() {
        check(GATE | REDIRECT, false, true, true, Decision::Refuse);
        check(
            GATE | REDIRECT,
            false,
            false,
            true,
            Decision::Leave(LeaveReason::NoListener),
        );
        check(GATE, false, true, false, Decision::Refuse);
    }

    #[test]
    fn redirects_only_to_a_listening_handler() {
        check(GATE | REDIRECT, true, true, true, Decision::Redirect);
        check(
            GATE | REDIRECT,
            true,
            true,
            false,
            Decision::Leave(LeaveReason::Fallback),
        );
        check(REDIRECT, false, true, true, Decision::Redirect);
    }

    #[test]
    fn nothing_is_decided_for_a_daemon_that_is_hung() {
        for flags in [GATE, REDIRECT, GATE | REDIRECT] {
            let unseen = || -> bool { panic!("looked at") };
            assert_eq!(
                decide(flags, false, unseen, unseen, unseen),
                Decision::Leave(LeaveReason::NoHeartbeat)
            );
        }
    }

    #[test]
    fn the_kernel_path_looks_at_nothing() {
        for is_alive in [true, false] {
            let unseen = || -> bool { panic!("looked at") };
            let decision = decide(GATE | KERNEL, is_alive, unseen, unseen, unseen);
            assert_eq!(decision, Decision::Exempt);
        }
    }

    #[test]
    fn the_kernel_path_stands_in_for_a_handler_that_does_not_answer() {
        let both = REDIRECT | KERNEL;
        check(both, false, true, true, Decision::Redirect);
        check(both, false, true, false, Decision::Exempt);
        check(both | GATE, true, true, false, Decision::Exempt);
        check(both | GATE, false, true, true, Decision::Refuse);
        check(both | GATE, false, false, true, Decision::Exempt);
        let unseen = || -> bool { panic!("looked at") };
        assert_eq!(
            decide(both | GATE, false, unseen, unseen, unseen),
            Decision::Exempt
        );
    }

    #[test]
    fn an_endpoint_that_only_gates_leaves_an_open_port_alone() {
        check(GATE, true, true, true, Decision::Leave(LeaveReason::Passed));
        check(0, false, true, true, Decision::Leave(LeaveReason::Passed));
    }
}
