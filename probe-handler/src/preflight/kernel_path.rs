//! What the kernel path needs. Where it is missing, the handler serves the pods.

use std::collections::BTreeSet;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};

use super::{chain, not_met, pass};
use crate::observe::finding::{Finding, State};
use kernel::exemption::{Error, Exemption, Family};
use kernel::netns::Netns;
use kernel::pins::Pins;
use kernel::programs;

/// Whether this kernel takes our rules, tried in a new network namespace.
pub fn rules(exemption: Result<Exemption, programs::Error>) -> Finding {
    let requirement = "kernel path: rules in pods";
    let warn = |found: String, remedy: String| not_met(State::Warn, requirement, found, remedy);
    let otherwise = "otherwise the handler serves the pods, and probes fail while no daemon runs";
    let exemption = match exemption {
        Ok(exemption) => exemption,
        Err(error) => return warn(chain(&error), error.remedy().unwrap_or_default()),
    };
    // A thread of its own, because it does not come back from the namespace.
    let tried = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)?;
        let netns = Netns::current()?;
        Ok::<_, std::io::Error>(Family::ALL.map(|family| exemption.put(&netns, family)))
    });
    match tried.join() {
        Ok(Ok([Ok(()), Ok(())])) => pass(requirement, "IPv4 and IPv6"),
        Ok(Ok(results)) => {
            let errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
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

/// Whether the kernel path can outlive the daemon.
pub fn pins(directory: &Path) -> Finding {
    let requirement = "kernel path: outlives the daemon";
    match Pins::check(directory) {
        Ok(()) => pass(requirement, directory.display().to_string()),
        Err(error) => not_met(
            State::Warn,
            requirement,
            chain(&error),
            "without it the kernel path ends with the daemon; --kernel-path=false does without the kernel path",
        ),
    }
}
