//! Checks and raises the privileges of the process at the start.

use kernel::{capabilities, dial};

/// Raises the limit of open descriptors to the hard limit: a pod needs three, an in-flight check two more, and
/// the usual soft limit of 1,024 exists for programs that use select(2).
pub(super) fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
}

/// Whether the process has the privileges that the daemon needs.
///
/// # Errors
/// All missing privileges, and what to do.
pub(super) fn check_privileges() -> anyhow::Result<()> {
    let mut troubles: Vec<String> = capabilities::missing()
        .into_iter()
        .map(|need| format!("{} is missing (to {})", need.capability, need.reason))
        .collect();
    troubles.extend(dial::unsuitable_group());
    anyhow::ensure!(
        troubles.is_empty(),
        "missing privileges: {}; run this as root in a privileged container, and see `probe-handler preflight`",
        troubles.join("; ")
    );
    Ok(())
}
