//! Which build this is.

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit it was built from, as far as the build was told (`PROBE_HANDLER_COMMIT`).
pub const COMMIT: &str = match option_env!("PROBE_HANDLER_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Registers `build`: version and commit.
pub fn register(registry: &mut Registry) {
    registry.register(
        "build",
        "Version, and the commit it was built from",
        Info::new([("version", VERSION), ("commit", COMMIT)]),
    );
}
