//! Decides what happens to the kubelet's connection to an endpoint.

use crate::endpoint::{GATE, KERNEL, REDIRECT};

/// The decision of a connect program. `must_use`, because a discarded decision lets a connection through
/// that should be refused.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Leave the connection unchanged.
    Leave(LeaveReason),
    /// Refuse in the kernel (ECONNREFUSED), because the mesh would accept although the app does not listen.
    Refuse,
    /// Redirect to the handler.
    Redirect,
    /// Let the kubelet's own connection reach the pod, exempt from the mesh's redirect.
    Exempt,
}

/// Why a connection to an endpoint is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveReason {
    /// Neither app nor mesh listens in the namespace: the connection without redirect has the right
    /// result, also for a sandboxed runtime (gVisor, Kata), whose sockets are not visible here.
    NoListener,
    /// The handler's heartbeat is too old: the maps' contents may be outdated.
    NoHeartbeat,
    /// The handler does not listen.
    Fallback,
    /// The endpoint's flags require no redirect, and the app listens or was not checked.
    Passed,
}

/// Decides what happens to a connection. Checks each listener only if the result matters.
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
    fn refuses_only_if_the_mesh_listens_and_the_app_does_not() {
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
    fn redirects_only_to_a_handler_that_listens() {
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
    fn without_a_heartbeat_connections_are_unchanged() {
        for flags in [GATE, REDIRECT, GATE | REDIRECT] {
            let unseen = || -> bool { panic!("checked") };
            assert_eq!(
                decide(flags, false, unseen, unseen, unseen),
                Decision::Leave(LeaveReason::NoHeartbeat)
            );
        }
    }

    #[test]
    fn the_kernel_path_checks_no_listener() {
        for is_alive in [true, false] {
            let unseen = || -> bool { panic!("checked") };
            let decision = decide(GATE | KERNEL, is_alive, unseen, unseen, unseen);
            assert_eq!(decision, Decision::Exempt);
        }
    }

    #[test]
    fn the_kernel_path_replaces_a_handler_that_does_not_answer() {
        let both = REDIRECT | KERNEL;
        check(both, false, true, true, Decision::Redirect);
        check(both, false, true, false, Decision::Exempt);
        check(both | GATE, true, true, false, Decision::Exempt);
        check(both | GATE, false, true, true, Decision::Refuse);
        check(both | GATE, false, false, true, Decision::Exempt);
        let unseen = || -> bool { panic!("checked") };
        assert_eq!(
            decide(both | GATE, false, unseen, unseen, unseen),
            Decision::Exempt
        );
    }

    #[test]
    fn without_redirect_connections_to_an_open_port_are_unchanged() {
        check(GATE, true, true, true, Decision::Leave(LeaveReason::Passed));
        check(0, false, true, true, Decision::Leave(LeaveReason::Passed));
    }
}
