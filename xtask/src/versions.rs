//! Versions of the tools that `cargo xtask setup` installs; nowhere else are they named.
//!
//! The three belong together: the linker's LLVM must not be older than the compiler's.

/// Version of the bpf-linker crate.
pub const BPF_LINKER: &str = "0.13.0";

/// Major version of the LLVM that bpf-linker is built with, and the newest that a compiler may have.
pub const LLVM: u32 = 22;

/// The rustup toolchain for the eBPF crate (LLVM 22). Any other nightly with rust-src is taken too.
pub const NIGHTLY: &str = "nightly-2026-05-20";

/// Version prefix of Debian's rustc-web and its companions (LLVM 22).
pub const DEBIAN_RUST: &str = "1.96";

/// Debian packages of the compiler, all of version [`DEBIAN_RUST`].
pub const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Debian package of the linter for that compiler, of version [`DEBIAN_RUST`].
pub const DEBIAN_CLIPPY: &str = "rust-web-clippy";

/// The oldest minor version of kubectl 1 whose kustomize renders `deploy/` (`labels` with
/// `includeSelectors`), and that tells its version as JSON.
pub const KUBECTL: u32 = 24;

/// Commands that building the daemon needs beside a C compiler, and the Debian package of each: `make` builds jemalloc.
pub const BUILD_TOOLS: [(&str, &str); 1] = [("make", "make")];

/// Commands that the namespaces need, and the Debian package of each.
pub const NETWORK_TOOLS: [(&str, &str); 4] = [
    ("ip", "iproute2"),
    ("iptables-nft", "iptables"),
    ("iptables-legacy", "iptables"),
    ("nft", "nftables"),
];

/// Commands that run other kernels, and the Debian package of each.
pub const MACHINE_TOOLS: [(&str, &str); 3] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("dpkg-deb", "dpkg"),
    ("xz", "xz-utils"),
];
