//! Builds the programs that `demo`, `test` and `bench` run.
//!
//! The demo and the namespace suite run the development build, which shares its directory with `cargo build` and `cargo test`
//! and takes half as long; benchmarks and virtual machines need the release build, which is static, like the image's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, root, target_dir};
use crate::static_build::{Build, Linking};
use crate::{ebpf, image, progress, setup};

/// The daemon and the testbed.
#[derive(Debug)]
pub struct Binaries {
    daemon: PathBuf,
    testbed: PathBuf,
}

/// The daemon's heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heap {
    /// The heap of the released daemon on x86_64. Compiling it takes a fifth of the time of the development
    /// build.
    Jemalloc,
    /// The heap of the C library: sufficient for a demonstration.
    Glibc,
}

impl Binaries {
    /// Installs what is missing and makes the development build.
    pub fn build(heap: Heap) -> Result<Self> {
        setup::run(&setup::Args::default())?;
        ebpf::build(&ebpf::BuildArgs::default())?;
        let mut build = cargo();
        build.args(["build", "--locked"]);
        if heap == Heap::Glibc {
            build.arg("--no-default-features");
        }
        build.args(["--package", "probe-handler", "--package", "testbed"]);
        progress::run(&mut build, "build")?;
        Self::of(&target_dir().join("debug"))
    }

    /// Installs what is missing and makes the release build.
    pub fn build_release() -> Result<Self> {
        Self::of(&Self::build_packages(&["probe-handler", "testbed"])?)
    }

    /// The release build with the benchmark; returns the command that runs it.
    pub fn build_bench() -> Result<Command> {
        let directory = Self::build_packages(&["probe-handler", "testbed", "bench"])?;
        let mut command = Command::new(directory.join("bench"));
        command.current_dir(root());
        command.arg("--daemon").arg(Self::of(&directory)?.daemon);
        Ok(command)
    }

    /// Returns the directory of the programs.
    fn build_packages(packages: &[&str]) -> Result<PathBuf> {
        setup::run(&setup::Args::default())?;
        let build = Build {
            packages,
            profile: "release",
            machine: image::this_machine()?,
            commit: None,
            linking: Linking::Static,
        };
        build.run()
    }

    /// The programs in `directory`.
    pub fn of(directory: &Path) -> Result<Self> {
        let binary = |name: &str| {
            let path = directory.join(name);
            path.is_file()
                .then_some(path)
                .with_context(|| format!("no {name} in {}", directory.display()))
        };
        Ok(Self {
            daemon: binary("probe-handler")?,
            testbed: binary("testbed")?,
        })
    }

    /// The daemon's program.
    pub fn daemon(&self) -> &Path {
        &self.daemon
    }

    /// The testbed's program.
    pub fn testbed_program(&self) -> &Path {
        &self.testbed
    }

    /// A testbed subcommand, with the path of the daemon's program as argument.
    pub fn testbed(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.testbed);
        command.current_dir(root());
        command.arg(subcommand).arg("--daemon").arg(&self.daemon);
        command
    }
}

/// Refuses a command that needs root, before anything is built.
pub fn require_root(command: &str) -> Result<()> {
    if crate::shell::is_root() {
        return Ok(());
    }
    bail!(
        "`cargo xtask {command}` needs root: it makes network namespaces and loads eBPF programs \
         (try `sudo env \"PATH=$PATH\" cargo xtask {command}`)"
    )
}
