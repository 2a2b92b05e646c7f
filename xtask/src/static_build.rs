//! The static build of our programs, the same on every machine with the same tools: what images hold, and what
//! `demo`, `test` and `bench` run.
//!
//! Linked with the C library inside, so that it runs where nothing else is. Of the builder no path gets
//! in (`--remap-path-prefix`); what does make a difference are the versions of rustc, of the C compiler
//! and library (libc.a, ring's C and assembler, jemalloc's C), and of the compiler of the eBPF programs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::ebpf;
use crate::image::{Machine, require_static};
use crate::shell::{cargo, cargo_home, exec, find, output, root, target_dir};

/// What jemalloc would find out about the machine that builds it: x86_64's page, huge page and virtual address, as
/// powers of two.
const JEMALLOC: [(&str, &str); 3] = [
    ("JEMALLOC_SYS_WITH_LG_PAGE", "12"),
    ("JEMALLOC_SYS_WITH_LG_HUGEPAGE", "21"),
    ("JEMALLOC_SYS_WITH_LG_VADDR", "48"),
];
/// What would have it built otherwise, or another one taken.
const NOT_JEMALLOC: [&str; 2] = ["JEMALLOC_OVERRIDE", "JEMALLOC_SYS_WITH_MALLOC_CONF"];

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct Build<'a> {
    /// Packages of this repository, each with a program of its name.
    pub packages: &'a [&'a str],
    /// The workspace's profile.
    pub profile: &'a str,
    /// The machine that will run them.
    pub machine: Machine,
    /// What the programs say they were built from; otherwise they ask git.
    pub commit: Option<&'a str>,
}

impl Build<'_> {
    /// Builds the programs, and the eBPF programs that the daemon embeds; gives the directory that holds them.
    ///
    /// # Errors
    /// This machine can't build for that one: what to install. The build fails, or what it made is not static.
    pub fn run(&self) -> Result<PathBuf> {
        let machine = self.machine;
        require_tools(machine)?;
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
            // With --target they reach the program and not the build scripts.
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags().join("\x1f"))
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
        exec(&mut build)?;
        let directory = target_dir().join(triple).join(self.profile);
        for package in self.packages {
            let program = directory.join(package);
            let content = fs::read(&program)
                .with_context(|| format!("the build made no {}", program.display()))?;
            require_static(&content, machine).with_context(|| program.display().to_string())?;
        }
        Ok(directory)
    }
}

/// glibc, whose static library every Debian with a C compiler has; rustup's std for musl would be one
/// thing more to install.
fn triple(machine: Machine) -> String {
    format!("{}-unknown-linux-gnu", machine.name())
}

fn is_native(machine: Machine) -> bool {
    env::consts::ARCH == machine.name()
}

/// The other machine's C compiler, which links too. `None`: it is this machine.
fn cross_compiler(machine: Machine) -> Option<String> {
    (!is_native(machine)).then(|| format!("{}-linux-gnu-gcc", machine.name()))
}

/// Refuses early and in one go what cargo would refuse late and one by one.
fn require_tools(machine: Machine) -> Result<()> {
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
    if library.is_some_and(|path| !Path::new(path.trim_end()).is_file()) {
        missing.push(
            "the C library to link statically, libc.a (on Debian: libc6-dev; on Fedora: glibc-static)"
                .to_owned(),
        );
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "this machine can't build for {}; it lacks:\n  {}",
        machine.name(),
        missing.join("\n  ")
    )
}

/// Where the eBPF programs for that machine are: those for this one where every build looks for them.
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

fn rustflags() -> Vec<String> {
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    flags.extend(standard_library());
    flags.extend(remapped("--remap-path-prefix="));
    flags
}

/// Where the library's sources are installed (rust-src), rustc names them instead of what the library
/// was built from; this undoes it.
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

/// A flag for every directory of this machine whose name could get into a program; of several that fit
/// the last one counts.
pub fn remapped(flag: &str) -> Vec<String> {
    let mut directories = vec![(root().to_owned(), "probe-handler")];
    directories.push((target_dir(), "target"));
    directories.extend(cargo_home().map(|home| (home, "cargo")));
    directories
        .into_iter()
        .map(|(directory, name)| format!("{flag}{}={name}", directory.display()))
        .collect()
}

/// What of a program's text names a directory of this machine.
///
/// # Errors
/// This repository's directory can't be read.
pub fn paths_within(program: &[u8]) -> Result<Vec<String>> {
    Ok(named(program, &own_paths()?))
}

/// What stands in the paths of everything that is compiled. A directory alone may be as short as /src, which is a part
/// of many a path that names no machine: there is more of each, and a slash at its end.
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

/// The time of everything in the image, in seconds since 1970: `SOURCE_DATE_EPOCH`, else the commit's.
pub fn time() -> Result<i64> {
    let (source, text) = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => ("SOURCE_DATE_EPOCH", text),
        Err(_) => (
            "git's time of the commit",
            git(&["log", "-1", "--format=%ct"])
                .context("no git here to take the commit's time from: set SOURCE_DATE_EPOCH")?,
        ),
    };
    text.trim()
        .parse()
        .with_context(|| format!("{source} is no time in seconds since 1970: {text:?}"))
}

/// The commit, with `-dirty` where the tree is not what was committed; else what
/// `PROBE_HANDLER_COMMIT` says.
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
    fn a_program_may_name_sources_but_not_where_they_were() {
        let paths = ["/src/probe-handler/", "/src/target/", "/cargo/registry/"];
        let paths = paths.map(PathBuf::from);
        let good = b"probe-handler/src/main.rs tokio-1.0/src/lib.rs target/release/";
        assert_eq!(named(good, &paths), Vec::<String>::new());
        let bad = b"/src/probe-handler/src/main.rs/src/target/release";
        assert_eq!(named(bad, &paths), ["/src/probe-handler/", "/src/target/"]);
    }

    #[test]
    fn the_paths_that_a_program_must_not_name_are_of_what_is_compiled() {
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
