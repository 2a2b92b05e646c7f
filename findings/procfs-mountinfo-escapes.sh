#!/usr/bin/env bash
# Crate procfs parses a line of mountinfo, but returns the mount point with the kernel's octal escapes.
# Needs cargo and a registry of crates.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cargo init --quiet --name finding
cargo add --quiet 'procfs@=0.18.0'
cat > src/main.rs <<'RUST'
use procfs::{FromBufRead, process::MountInfos};

fn main() {
    // As the kernel writes a mount at "/mnt/my disk" (proc_pid_mountinfo(5)).
    let line = "36 35 0:31 / /mnt/my\\040disk rw,relatime shared:1 - tmpfs none rw\n";
    let mounts = MountInfos::from_buf_read(line.as_bytes()).expect("a valid line");
    for mount in mounts {
        println!("{}", mount.mount_point.display());
    }
}
RUST
seen=$(cargo run --quiet)
grep -A1 '^name = "procfs"' Cargo.lock
echo "MountInfo::mount_point contains the escape \\040 instead of the space, so it is not a path that can be opened."
echo "seen: $seen"
[ "$seen" = '/mnt/my\040disk' ]
