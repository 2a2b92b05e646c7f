//! Version and commit of this build.

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit from which it was built, if `PROBE_HANDLER_COMMIT` was set by the build script.
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
