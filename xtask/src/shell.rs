//! Runs other programs and locates files.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The repository's root.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Where cargo puts the user-space crates: `CARGO_TARGET_DIR`, else `target`.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The cargo that runs this xtask, in the repository's root.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A command as typed in a shell.
pub fn display(command: &Command) -> String {
    let mut words = vec![command.get_program()];
    words.extend(command.get_args());
    words
        .iter()
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command and waits for its end; the error names the command.
pub fn exec(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run `{}`", display(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", display(command));
    }
    Ok(())
}

/// Standard output of a command that succeeds; `None` if it can't be run or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Every executable of that name in `PATH`, then in cargo's bin directory: `cargo install` puts
/// programs there even if `PATH` does not contain it.
pub fn find_all(name: impl AsRef<OsStr>) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    directories.extend(cargo_home().map(|home| home.join("bin")));
    let mut found: Vec<PathBuf> = Vec::new();
    for directory in directories {
        let file = directory.join(name.as_ref());
        let executable = file
            .metadata()
            .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
        if executable && !found.contains(&file) {
            found.push(file);
        }
    }
    found
}

/// The first executable of that name, in the order of [`find_all`].
pub fn find(name: impl AsRef<OsStr>) -> Option<PathBuf> {
    find_all(name).into_iter().next()
}

/// Cargo's directory of registries and installed programs: `CARGO_HOME`, else `~/.cargo`.
pub fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
}

/// Whether we are root.
pub fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}
