//! Makes the release build that `demo`, `test` and `bench` run; static, like the image's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::root;
use crate::static_build::Build;
use crate::{image, setup};

/// The programs of a release build.
#[derive(Debug)]
pub struct Binaries {
    daemon: PathBuf,
    testbed: PathBuf,
}

impl Binaries {
    /// Installs what is missing and builds everything.
    pub fn build() -> Result<Self> {
        Self::of(&Self::build_packages(&["probe-handler", "testbed"])?)
    }

    /// The same, with the benchmark; returns the command that runs it.
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
