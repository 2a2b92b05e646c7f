//! Builds our programs reproducibly, for releases, images, virtual machines and benchmarks.
//!
//! The C library is linked in, so that a program runs in an empty image; only the kubectl plugin uses the C library of its
//! system. The build machine's paths are kept out (`--remap-path-prefix`). The result depends on the versions of rustc, of the
//! C compiler and library (libc.a, ring's C and assembler, jemalloc's C), and of the compiler of the eBPF programs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::image::{Machine, require_program, require_static};
use crate::shell::{cargo, cargo_home, find, output, root, target_dir};
use crate::{ebpf, progress};

/// What jemalloc would otherwise detect on the build machine: x86_64's page size, huge page size and virtual
/// address size, as powers of two.
const JEMALLOC: [(&str, &str); 3] = [
    ("JEMALLOC_SYS_WITH_LG_PAGE", "12"),
    ("JEMALLOC_SYS_WITH_LG_HUGEPAGE", "21"),
    ("JEMALLOC_SYS_WITH_LG_VADDR", "48"),
];
/// Variables that would change jemalloc's build, or use another jemalloc.
const NOT_JEMALLOC: [&str; 2] = ["JEMALLOC_OVERRIDE", "JEMALLOC_SYS_WITH_MALLOC_CONF"];

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct Build<'a> {
    /// Packages of this repository, each with a program of the same name.
    pub packages: &'a [&'a str],
    /// The workspace's profile.
    pub profile: &'a str,
    /// The machine that will run them.
    pub machine: Machine,
    /// The commit that the programs report; by default their build script runs git.
    pub commit: Option<&'a str>,
    /// How they use the C library.
    pub linking: Linking,
}

/// How a program uses the C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linking {
    /// It contains it.
    Static,
    /// The program loads the C library of its system.
    Dynamic,
}

impl Build<'_> {
    /// Builds the programs, and the eBPF programs that the daemon embeds; returns the directory of the programs.
    ///
    /// # Errors
    /// This machine can't build for the target: what to install. The build fails, or its result is not what was requested.
    pub fn run(&self) -> Result<PathBuf> {
        let machine = self.machine;
        require_tools(machine, self.linking)?;
        let object = ebpf_object(machine);
        ebpf::build(&ebpf::BuildArgs::for_machine(machine, object.clone()))?;

        let triple = triple(machine);
        let mut build = cargo();
        build.args(["build", "--locked", "--profile", self.profile]);
        for package in self.packages {
            build.args(["--package", package]);
        }
        build
            .args(["--target", &triple])
            .arg("--target-dir")
            .arg(target_dir())
            // With --target they apply to the program and not to the build scripts.
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                rustflags(self.linking).join("\x1f"),
            )
            .env(
                format!("CFLAGS_{}", triple.replace('-', "_")),
                c_flags().join(" "),
            )
            .env("PROBE_HANDLER_EBPF_OBJECT", object)
            .envs(JEMALLOC);
        for name in NOT_JEMALLOC {
            build.env_remove(name);
        }
        if let Some(commit) = self.commit {
            build.env("PROBE_HANDLER_COMMIT", commit);
        }
        if let Some(linker) = cross_compiler(machine) {
            build.env(
                format!(
                    "CARGO_TARGET_{}_LINKER",
                    triple.to_uppercase().replace('-', "_")
                ),
                linker,
            );
        }
        progress::run(&mut build, &format!("build ({})", self.profile))?;
        let directory = target_dir().join(triple).join(self.profile);
        for package in self.packages {
            let program = directory.join(package);
            let content = fs::read(&program)
                .with_context(|| format!("the build did not produce {}", program.display()))?;
            let checked = match self.linking {
                Linking::Static => require_static(&content, machine),
                Linking::Dynamic => require_program(&content, machine),
            };
            checked.with_context(|| program.display().to_string())?;
        }
        Ok(directory)
    }
}

/// glibc, because Debian's C compiler comes with its static library; rustup's std for musl would be one
/// more thing to install.
fn triple(machine: Machine) -> String {
    format!("{}-unknown-linux-gnu", machine.name())
}

fn is_native(machine: Machine) -> bool {
    env::consts::ARCH == machine.name()
}

/// The cross compiler, which also links; `None` if the target is this machine.
fn cross_compiler(machine: Machine) -> Option<String> {
    (!is_native(machine)).then(|| format!("{}-linux-gnu-gcc", machine.name()))
}

/// Reports all missing tools at once and before the build; cargo would report them late and one by one.
fn require_tools(machine: Machine, linking: Linking) -> Result<()> {
    let triple = triple(machine);
    let mut missing = Vec::new();
    if let Some(compiler) = cross_compiler(machine)
        && find(&compiler).is_none()
    {
        missing.push(format!(
            "{compiler} (on Debian: apt-get install gcc-{0}-linux-gnu libc6-dev-{1}-cross)",
            machine.name().replace('_', "-"),
            machine.oci(),
        ));
    }
    let std = output(Command::new("rustc").current_dir(root()).args([
        "--print",
        "target-libdir",
        "--target",
        &triple,
    ]));
    if !std.is_some_and(|directory| Path::new(directory.trim_end()).is_dir()) {
        missing.push(format!(
            "Rust's standard library for it (rustup target add {triple})"
        ));
    }
    let compiler = cross_compiler(machine).unwrap_or_else(|| "cc".to_owned());
    let library = output(Command::new(&compiler).arg("-print-file-name=libc.a"));
    if linking == Linking::Static
        && library.is_some_and(|path| !Path::new(path.trim_end()).is_file())
    {
        missing.push(
            "the C library to link statically, libc.a (on Debian: libc6-dev; on Fedora: glibc-static)"
                .to_owned(),
        );
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "this machine can't build for {}; missing:\n  {}",
        machine.name(),
        missing.join("\n  ")
    )
}

/// Path of the eBPF object for a machine; for this one it is the path where every build looks for it.
fn ebpf_object(machine: Machine) -> PathBuf {
    if is_native(machine) {
        root().join(ebpf::OBJECT)
    } else {
        root().join(format!(
            "target/ebpf-{}/probe-handler.bpf.o",
            machine.name()
        ))
    }
}

fn rustflags(linking: Linking) -> Vec<String> {
    let feature = match linking {
        Linking::Static => "-Ctarget-feature=+crt-static",
        Linking::Dynamic => "-Ctarget-feature=-crt-static",
    };
    let mut flags = vec![feature.to_owned()];
    flags.extend(standard_library());
    flags.extend(remapped("--remap-path-prefix="));
    flags
}

/// If the library's sources are installed (rust-src), rustc writes their path instead of the path that
/// the library was built from; this reverts it.
fn standard_library() -> Option<String> {
    let ask =
        |arguments: &[&str]| output(Command::new("rustc").current_dir(root()).args(arguments));
    let version = ask(&["-vV"])?;
    let hash = version
        .lines()
        .find_map(|line| line.strip_prefix("commit-hash: "))?;
    let sysroot = ask(&["--print", "sysroot"])?;
    Some(format!(
        "--remap-path-prefix={}/lib/rustlib/src/rust=/rustc/{hash}",
        sysroot.trim_end()
    ))
}

fn c_flags() -> Vec<String> {
    remapped("-ffile-prefix-map=")
}

/// A flag for every directory of this machine whose path could get into a program; if several match, the
/// last one applies.
pub fn remapped(flag: &str) -> Vec<String> {
    let mut directories = vec![(root().to_owned(), "probe-handler")];
    directories.push((target_dir(), "target"));
    directories.extend(cargo_home().map(|home| (home, "cargo")));
    directories
        .into_iter()
        .map(|(directory, name)| format!("{flag}{}={name}", directory.display()))
        .collect()
}

/// The directories of this machine that a program's bytes contain.
///
/// # Errors
/// This repository's directory can't be read.
pub fn paths_within(program: &[u8]) -> Result<Vec<String>> {
    Ok(named(program, &own_paths()?))
}

/// Directories that contain the compiled sources. A directory may be as short as /src, which is part of many paths that
/// do not identify a machine, so each entry is longer and ends with a slash.
fn own_paths() -> Result<Vec<PathBuf>> {
    let mut paths = vec![target_dir().join("")];
    for entry in fs::read_dir(root()).with_context(|| root().display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            paths.push(path.join(""));
        }
    }
    let cargo = cargo_home().map(|home| ["registry", "git"].map(|part| home.join(part).join("")));
    paths.extend(cargo.into_iter().flatten());
    Ok(paths)
}

fn named(program: &[u8], paths: &[PathBuf]) -> Vec<String> {
    let is_named = |path: &&PathBuf| {
        let path = path.as_os_str().as_encoded_bytes();
        program.windows(path.len()).any(|part| part == path)
    };
    let named = paths.iter().filter(is_named);
    named.map(|path| path.display().to_string()).collect()
}

/// The modification time of all files in the image, in seconds since 1970: `SOURCE_DATE_EPOCH`, else the commit's time.
pub fn time() -> Result<i64> {
    let (source, text) = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => ("SOURCE_DATE_EPOCH", text),
        Err(_) => (
            "git's time of the commit",
            git(&["log", "-1", "--format=%ct"])
                .context("git does not report the commit's time: set SOURCE_DATE_EPOCH")?,
        ),
    };
    text.trim()
        .parse()
        .with_context(|| format!("{source} is not a time in seconds since 1970: {text:?}"))
}

/// The commit, with `-dirty` if the work tree differs from it; without git the value of
/// `PROBE_HANDLER_COMMIT`.
pub fn commit() -> String {
    if let Ok(commit) = env::var("PROBE_HANDLER_COMMIT") {
        return commit;
    }
    let Some(head) = git(&["rev-parse", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let dirty = git(&["status", "--porcelain"]).is_none_or(|changes| !changes.is_empty());
    format!("{head}{}", if dirty { "-dirty" } else { "" })
}

fn git(arguments: &[&str]) -> Option<String> {
    let mut git = Command::new("git");
    output(git.args(arguments).current_dir(root())).map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_contain_relative_paths_only() {
        let paths = ["/src/probe-handler/", "/src/target/", "/cargo/registry/"];
        let paths = paths.map(PathBuf::from);
        let good = b"probe-handler/src/main.rs tokio-1.0/src/lib.rs target/release/";
        assert_eq!(named(good, &paths), Vec::<String>::new());
        let bad = b"/src/probe-handler/src/main.rs/src/target/release";
        assert_eq!(named(bad, &paths), ["/src/probe-handler/", "/src/target/"]);
    }

    #[test]
    fn forbidden_paths_cover_every_compiled_source() {
        let paths = own_paths().expect("paths");
        for part in [
            root().join("probe-handler/"),
            root().join("testbed/"),
            target_dir().join(""),
        ] {
            assert!(paths.contains(&part), "{part:?}: {paths:?}");
        }
        let ends = |path: &PathBuf| path.as_os_str().as_encoded_bytes().ends_with(b"/");
        assert!(paths.iter().all(ends), "{paths:?}");
    }
}
