//! Sets `PROBE_HANDLER_COMMIT` to the commit that is being built, and `PROBE_HANDLER_DESCRIPTION` to a description of the build.

use std::env;
use std::path::Path;
use std::process::Command;

/// The environment variable that sets the commit if the build has no git (for example in a container image).
const COMMIT_VARIABLE: &str = "PROBE_HANDLER_COMMIT";

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    println!("cargo::rerun-if-changed=build.rs");
    let commit = commit(root, release);
    println!("cargo::rustc-env={COMMIT_VARIABLE}={commit}");
    let set = |name: &str| env::var(name).unwrap_or_else(|_| "unknown".into());
    let (version, profile, target) = (set("CARGO_PKG_VERSION"), set("PROFILE"), set("TARGET"));
    println!(
        "cargo::rustc-env=PROBE_HANDLER_DESCRIPTION={version} (commit {commit}, {profile}, {target})"
    );
}

/// The commit from which a release is built. Dev builds do not query git, so that a new commit does not cause
/// a rebuild.
fn commit(root: &Path, release: bool) -> String {
    println!("cargo::rerun-if-env-changed={COMMIT_VARIABLE}");
    if let Ok(commit) = env::var(COMMIT_VARIABLE) {
        return commit;
    }
    if !release {
        return "development".into();
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(arguments)
            .current_dir(root)
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".into();
    };
    // Git appends every commit and checkout to HEAD's log.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && root.join(&log).is_file()
    {
        println!("cargo::rerun-if-changed={}", root.join(log).display());
    }
    commit
}
