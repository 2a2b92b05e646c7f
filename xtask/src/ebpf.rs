//! `cargo xtask build-ebpf` and `cargo xtask lint-ebpf`: build and lint the eBPF crate.
//!
//! The crate is compiled for the bpf target together with `core`. Its cargo is not the one that runs
//! this xtask, so the outer cargo's environment must not reach it. It has a separate target directory,
//! so that the two builds neither block nor invalidate each other.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::image::Machine;
use crate::shell::{exec, find, root};
use crate::static_build::remapped;
use crate::toolchain::{Toolchain, find_toolchain};
use crate::versions::BPF_LINKER;
use crate::{digest, progress, setup, strip};

/// Where `probe-handler/build.rs` looks for the object, relative to the root. The directory contains
/// nothing else, because cargo watches all of it.
pub const OBJECT: &str = "target/ebpf/probe-handler.bpf.o";

/// The eBPF crate's target directory, relative to the root.
const TARGET_DIR: &str = "target/ebpf-build";

const PACKAGE: &str = "probe-handler-ebpf";

/// Profile settings of the eBPF crate. The workspace's profiles do not fit, because BTF is made from debug
/// information and only optimised code passes the verifier.
const PROFILE: [(&str, &str); 6] = [
    ("OPT_LEVEL", "3"),
    ("DEBUG", "2"),
    ("STRIP", "none"),
    ("DEBUG_ASSERTIONS", "false"),
    ("OVERFLOW_CHECKS", "false"),
    ("INCREMENTAL", "false"),
];

/// Additional settings of the release profile.
const RELEASE_PROFILE: [(&str, &str); 2] = [("LTO", "true"), ("CODEGEN_UNITS", "1")];

/// Options of `build-ebpf`.
#[derive(Debug, Default, clap::Args)]
pub struct BuildArgs {
    /// Build with cargo's dev profile (faster; still optimised, as the verifier requires)
    #[arg(long)]
    debug: bool,
    /// Write the object to this path instead
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// The architecture of the kernel that will load the programs [default: this machine's]
    #[arg(long, value_enum)]
    target: Option<Machine>,
}

impl BuildArgs {
    /// A release build for `machine`, written to `out`.
    pub fn for_machine(machine: Machine, out: PathBuf) -> Self {
        Self {
            out: Some(out),
            target: Some(machine),
            ..Self::default()
        }
    }
}

/// Builds the object; does not rewrite the file if its content is the same.
pub fn build(args: &BuildArgs) -> Result<()> {
    let toolchain = find_toolchain()?;
    let linker = find_linker()?;
    let profile = if args.debug { "dev" } else { "release" };
    // Computed before the build, so that an edit during the build makes the object stale.
    let sources = digest::sources(root()).context("cannot read the eBPF crate's sources")?;
    let mut cargo = command(&toolchain, &toolchain.cargo, "build");
    if let Some(machine) = args.target {
        cargo.env(
            "CARGO_ENCODED_RUSTFLAGS",
            rustflags(&toolchain, machine.name()),
        );
    }
    cargo
        .args(["--profile", profile])
        .env(format!("CARGO_TARGET_{}_LINKER", upper(target())), linker);
    progress::run(&mut cargo, "build of the eBPF programs")?;

    let directory = if args.debug { "debug" } else { "release" };
    let built = root().join(TARGET_DIR).join(target()).join(directory);
    let object = fs::read(built.join(PACKAGE)).context("cargo produced no object")?;
    if !object.starts_with(b"\x7fELF") {
        bail!("bpf-linker's output is not an ELF object");
    }
    let object = strip::debug_information(&object)?;
    let out = args.out.clone().unwrap_or_else(|| root().join(OBJECT));
    write_if_changed(&out, &object)?;
    write_if_changed(&digest::beside(&out), sources.as_bytes())?;
    println!(
        "build-ebpf: {} ({} bytes, {profile}) by {toolchain}",
        out.display(),
        object.len(),
    );
    Ok(())
}

/// Runs clippy on the eBPF crate; if its compiler has no clippy, shows the compiler's warnings.
pub fn lint() -> Result<()> {
    let toolchain = find_toolchain()?;
    let clippy = toolchain.rustc.with_file_name("cargo-clippy");
    let mut cargo;
    if clippy.is_file() {
        // Called by its path, because cargo would search PATH, where rustup's comes first.
        cargo = command(&toolchain, &clippy, "clippy");
        cargo.args(["--", "-D", "warnings"]);
    } else {
        println!(
            "lint-ebpf: no clippy beside {}, so only the compiler's own warnings are denied \
             (`cargo xtask setup --lint` installs the one that goes with it)",
            toolchain.rustc.display()
        );
        cargo = command(&toolchain, &toolchain.cargo, "check");
        cargo.env(
            "CARGO_ENCODED_RUSTFLAGS",
            rustflags(&toolchain, env::consts::ARCH) + "\x1f-Dwarnings",
        );
    }
    exec(&mut cargo)?;
    println!("lint-ebpf: clean by {toolchain}");
    Ok(())
}

/// Finds bpf-linker; the error tells how to install it.
fn find_linker() -> Result<PathBuf> {
    find("bpf-linker").with_context(|| {
        format!(
            "bpf-linker is neither in PATH nor in cargo's bin directory\n\
             install it:  cargo xtask setup\n\
             or manually:  {}\n\
             (the LLVM it is built with must not be older than the compiler's; this repository uses bpf-linker {BPF_LINKER})",
            setup::linker_command_line(),
        )
    })
}

/// The eBPF crate's cargo with a subcommand, without the outer cargo's environment.
fn command(toolchain: &Toolchain, program: &Path, subcommand: &str) -> Command {
    let mut cargo = Command::new(program);
    cargo.current_dir(root()).args([
        subcommand,
        "--locked",
        "--package",
        PACKAGE,
        "--target",
        target(),
        "-Zbuild-std=core",
    ]);
    cargo.arg("--target-dir").arg(root().join(TARGET_DIR));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| !inherited(name)) {
            cargo.env_remove(name);
        }
    }
    cargo
        .env("CARGO", &toolchain.cargo)
        .env("RUSTC", &toolchain.rustc)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            rustflags(toolchain, env::consts::ARCH),
        );
    if !toolchain.version.is_nightly() {
        cargo.env("RUSTC_BOOTSTRAP", "1");
    }
    for profile in ["DEV", "RELEASE"] {
        for (name, value) in PROFILE {
            cargo.env(format!("CARGO_PROFILE_{profile}_{name}"), value);
        }
    }
    for (name, value) in RELEASE_PROFILE {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{name}"), value);
    }
    cargo
}

/// Programs run on the machine that loads them, so they have its byte order.
const fn target() -> &'static str {
    if cfg!(target_endian = "little") {
        "bpfel-unknown-none"
    } else {
        "bpfeb-unknown-none"
    }
}

/// A target as cargo writes it in the name of an environment variable.
fn upper(target: &str) -> String {
    target.to_uppercase().replace('-', "_")
}

/// Flags for the eBPF crate and `core`, separated as `CARGO_ENCODED_RUSTFLAGS` requires.
fn rustflags(toolchain: &Toolchain, arch: &str) -> String {
    let mut flags = ["-Cdebuginfo=2", "-Clink-arg=--btf", "--cfg"]
        .map(str::to_owned)
        .to_vec();
    // aya-ebpf has bindings for each architecture that runs the programs.
    flags.push(format!("bpf_target_arch=\"{arch}\""));
    // BTF contains the names of source files; a released object must not contain this machine's directories.
    let sysroot = toolchain.rustc.ancestors().nth(2).unwrap_or(Path::new("/"));
    flags.push(format!("--remap-path-prefix={}=rust", sysroot.display()));
    flags.extend(remapped("--remap-path-prefix="));
    flags.join("\x1f")
}

/// Whether the eBPF crate's cargo inherits an environment variable: it inherits the user's settings of
/// registry and network, but nothing that the outer cargo and rustup set.
fn inherited(name: &str) -> bool {
    const KEPT: [&str; 7] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "CARGO_BUILD_JOBS",
    ];
    if name == "LD_LIBRARY_PATH" {
        // `cargo run` sets it to another compiler's libraries.
        return false;
    }
    if name.starts_with("CARGO") {
        return KEPT.iter().any(|kept| name.starts_with(kept));
    }
    !["RUSTUP_TOOLCHAIN", "RUSTC", "RUSTDOC", "RUSTFLAGS"]
        .iter()
        .any(|dropped| name.starts_with(dropped))
}

fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_cargos_settings_are_not_inherited() {
        for name in [
            "CARGO",
            "CARGO_MANIFEST_DIR",
            "CARGO_TARGET_DIR",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_PROFILE_RELEASE_LTO",
            "LD_LIBRARY_PATH",
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "RUSTC_WRAPPER",
        ] {
            assert!(!inherited(name), "{name}");
        }
        for name in [
            "PATH",
            "HOME",
            "CARGO_HOME",
            "CARGO_HTTP_PROXY",
            "CARGO_NET_OFFLINE",
        ] {
            assert!(inherited(name), "{name}");
        }
    }

    #[test]
    fn an_unchanged_object_keeps_its_time() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("ebpf/object.o");
        write_if_changed(&path, b"one").expect("write");
        let before = fs::metadata(&path)
            .and_then(|data| data.modified())
            .expect("time");
        write_if_changed(&path, b"one").expect("write");
        let after = fs::metadata(&path)
            .and_then(|data| data.modified())
            .expect("time");
        assert_eq!(before, after);
        write_if_changed(&path, b"two").expect("write");
        assert_eq!(fs::read(&path).expect("read"), b"two");
    }
}
