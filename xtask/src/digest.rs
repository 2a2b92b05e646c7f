//! Computes a digest of the eBPF programs' sources.
//!
//! `build-ebpf` writes it next to the object. `probe-handler/build.rs`, which includes this file, compares
//! it, so that a release binary never contains programs older than their sources. Modification times do
//! not suffice: a checkout changes them, and an object with unchanged content keeps its time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The object's sources, relative to the repository's root.
pub const SOURCES: [&str; 4] = [
    "probe-handler-ebpf/Cargo.toml",
    "probe-handler-ebpf/src",
    "probe-handler-common/Cargo.toml",
    "probe-handler-common/src",
];

/// The file next to an object that contains the digest of its sources.
pub fn beside(object: &Path) -> PathBuf {
    object.with_extension("o.sources")
}

/// Digest over the names and contents of all sources (FNV-1a, 64 bit: detects edits, does not resist
/// forgery).
pub fn sources(root: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file);
        let content = fs::read(&file)?;
        for part in [name.as_os_str().as_encoded_bytes(), &content] {
            // The length distinguishes "ab" + "c" from "a" + "bc".
            for byte in (part.len() as u64).to_le_bytes().iter().chain(part) {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }
    Ok(format!("{hash:016x}"))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            collect(&entry?.path(), files)?;
        }
    } else {
        files.push(path.to_path_buf());
    }
    Ok(())
}
