//! Version, commit and target of this build.

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit from which it was built, if `PROBE_HANDLER_COMMIT` was set by the build script.
pub const COMMIT: &str = match option_env!("PROBE_HANDLER_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Version, commit, profile and target: `0.1.0 (commit 0123456789ab, release, x86_64-unknown-linux-gnu)`.
pub const DESCRIPTION: &str = env!("PROBE_HANDLER_DESCRIPTION");

/// Registers `build`: version and commit.
pub fn register(registry: &mut Registry) {
    registry.register(
        "build",
        "Version, and the commit it was built from",
        Info::new([("version", VERSION), ("commit", COMMIT)]),
    );
}
