//! Checks the requirements of the kernel path. If one is not met, the handler serves the pods.

use std::collections::BTreeSet;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};

use super::{chain, not_met, pass};
use crate::observe::finding::{Finding, State};
use kernel::exemption::{Error, Exemption, Matcher};
use kernel::netns::Netns;
use kernel::pins::Pins;
use kernel::programs;

/// Whether this kernel accepts our rules, tried in a new network namespace.
pub fn rules(exemption: Result<Exemption, programs::Error>) -> Finding {
    let requirement = "kernel path: rules in pods";
    let warn = |found: String, remedy: String| not_met(State::Warn, requirement, found, remedy);
    let otherwise = "otherwise the handler serves the pods, and probes fail while no daemon runs";
    let exemption = match exemption {
        Ok(exemption) => exemption,
        Err(error) => return warn(chain(&error), error.remedy().unwrap_or_default()),
    };
    // Uses a separate thread, because it does not leave the namespace.
    let tried = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)?;
        let netns = Netns::current()?;
        let attempt = |matcher| exemption.try_in(&netns, matcher);
        Ok::<_, std::io::Error>(match attempt(Matcher::XtBpf) {
            Ok(()) => Ok(Matcher::XtBpf),
            Err(error) if error.is_missing_match() => match attempt(Matcher::Tc) {
                Ok(()) => Ok(Matcher::Tc),
                Err(without_tc) => Err(vec![error, without_tc]),
            },
            Err(error) => Err(vec![error]),
        })
    });
    match tried.join() {
        Ok(Ok(Ok(matcher))) => pass(requirement, found(matcher)),
        Ok(Ok(Err(errors))) => {
            let found: Vec<_> = errors.iter().map(|error| chain(error)).collect();
            let remedies: BTreeSet<_> = errors.iter().map(Error::remedy).collect();
            let remedies: Vec<_> = remedies.into_iter().collect();
            warn(found.join("; "), remedies.join("; "))
        }
        Ok(Err(error)) => warn(
            format!("no network namespace to try them in: {error}"),
            format!("add CAP_SYS_ADMIN; {otherwise}"),
        ),
        Err(_) => warn("the trial panicked".to_owned(), otherwise.to_owned()),
    }
}

/// How the rules match the kubelet's connections.
const fn found(matcher: Matcher) -> &'static str {
    match matcher {
        Matcher::XtBpf => "IPv4 and IPv6, by xt_bpf",
        Matcher::Tc => "IPv4 and IPv6, by a tc filter, because the kernel has no xt_bpf",
    }
}

/// Whether the results of HTTP and gRPC probes are known on the kernel path. `trouble`: see
/// `Programs::answer_trouble`.
pub fn answers(trouble: Option<&str>) -> Finding {
    let requirement = "kernel path: results of probes";
    match trouble {
        None => pass(requirement, "program answer reads them"),
        Some(found) => not_met(
            State::Warn,
            requirement,
            found,
            "probes work without it, and count as unknown",
        ),
    }
}

/// Whether the kernel path can outlive the daemon.
pub fn pins(directory: &Path) -> Finding {
    let requirement = "kernel path: outlives the daemon";
    match Pins::check(directory) {
        Ok(()) => pass(requirement, directory.display().to_string()),
        Err(error) => not_met(
            State::Warn,
            requirement,
            chain(&error),
            "without it the kernel path ends with the daemon; --kernel-path=false disables the kernel path",
        ),
    }
}
