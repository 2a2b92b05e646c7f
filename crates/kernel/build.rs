//! Embeds the eBPF object that `cargo xtask build-ebpf` builds.
//!
//! Checks, lints and unit tests need no eBPF toolchain: without an object a dev build embeds an empty
//! one, and the daemon refuses to start with it. A release build without an object, or with one that is
//! older than its sources, fails.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "../../xtask/src/digest.rs"]
mod digest;

/// Path of the object (if relative, from the repository's root), if it is not the one that
/// `cargo xtask build-ebpf` builds.
const OBJECT_VARIABLE: &str = "PROBE_HANDLER_EBPF_OBJECT";

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .ok_or("the crate is not in a workspace")?;
    let release = env::var("PROFILE")? == "release";
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../xtask/src/digest.rs");
    embed(root, release)
}

/// Copies the object to the path from which the crate includes it.
fn embed(root: &Path, release: bool) -> Result<(), Box<dyn Error>> {
    let embedded = PathBuf::from(env::var("OUT_DIR")?).join("probe-handler.bpf.o");
    let problem = match find_object(root) {
        Some(object) => {
            let content = fs::read(&object)
                .map_err(|error| format!("cannot read {}: {error}", object.display()))?;
            if !content.starts_with(b"\x7fELF") {
                return Err(format!("{} is not an eBPF object", object.display()).into());
            }
            fs::write(embedded, content)?;
            is_stale(root, &object)?.then(|| {
                format!(
                    "the eBPF object {} is older than its sources",
                    object.display()
                )
            })
        }
        None => {
            fs::write(embedded, [])?;
            // A missing object is normal in builds that only check or test, so it is an error only in a
            // release build.
            release.then(|| "no eBPF object".to_owned())
        }
    };
    match problem {
        Some(problem) if release => {
            Err(format!("{problem}: run `cargo xtask build-ebpf` first").into())
        }
        Some(problem) => {
            println!("cargo::warning={problem}: run `cargo xtask build-ebpf`");
            Ok(())
        }
        None => Ok(()),
    }
}

/// The object that the environment variable names, else the one in the workspace's target directory, if any.
fn find_object(root: &Path) -> Option<PathBuf> {
    println!("cargo::rerun-if-env-changed={OBJECT_VARIABLE}");
    if let Some(object) = env::var_os(OBJECT_VARIABLE) {
        let object = root.join(object);
        println!("cargo::rerun-if-changed={}", object.display());
        return Some(object);
    }
    let directory = root.join("target/ebpf");
    let object = directory.join("probe-handler.bpf.o");
    // Cargo reruns this script in every build while a watched file does not exist, so this watches the
    // directory. If the directory can't be created, no object can appear in it either.
    if fs::create_dir_all(&directory).is_ok() {
        println!("cargo::rerun-if-changed={}", directory.display());
    }
    object.is_file().then_some(object)
}

/// Whether the sources have changed since the object was built. An object that the environment variable
/// names may lack the digest of its sources; then it counts as up to date.
fn is_stale(root: &Path, object: &Path) -> Result<bool, Box<dyn Error>> {
    for source in digest::SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    match fs::read_to_string(digest::beside(object)) {
        Ok(built_from) => Ok(built_from != digest::sources(root)?),
        Err(_) => Ok(env::var_os(OBJECT_VARIABLE).is_none()),
    }
}
