//! The guest's files: our static programs, and the commands that they run with their shared libraries. There is no
//! distribution; the files are copies of those that the namespace suite uses on this machine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::initramfs::Initramfs;
use crate::ldd;
use crate::shell::find;

/// Every command that the testbed runs, and no others.
const COMMANDS: &[&str] = &[
    "ip",
    "nft",
    "iptables-nft",
    "ip6tables-nft",
    "iptables-nft-restore",
    "ip6tables-nft-restore",
    "iptables-legacy-restore",
    "ip6tables-legacy-restore",
    "sh",
    "sleep",
    "mkdir",
    "mount",
    "umount",
    "timeout",
    "prlimit",
    "true",
    "setpriv",
    "unshare",
    "nsenter",
];

/// Directories of iptables' matches and targets.
const PLUGINS: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/xtables",
    "/usr/lib64/xtables",
    "/usr/lib/xtables",
];

/// Files that nft reads to resolve names.
const TABLES: &[&str] = &["/etc/protocols", "/etc/services"];

/// The programs' directory in the guest.
const BIN: &str = "/bin";

/// The guest's files, without kernel modules and arguments. `daemon` and `testbed` are our programs.
///
/// # Errors
/// When a command is missing on this machine, or its libraries can't be determined.
pub fn base(daemon: &Path, testbed: &Path) -> Result<Initramfs> {
    let mut guest = Initramfs::default();
    for directory in [
        "/proc", "/sys", "/dev", "/run", "/tmp", "/var", "/etc", "/root",
    ] {
        guest.directory(directory);
    }
    guest.link("/var/run", "/run");
    guest.bytes("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
    for table in TABLES.iter().filter(|table| Path::new(table).is_file()) {
        guest.copy(table, *table);
    }
    let mut programs = Vec::new();
    for (name, path) in [("probe-handler", daemon), ("testbed", testbed)] {
        guest.copy(Path::new(BIN).join(name), path);
        programs.push(path.to_owned());
    }
    for name in COMMANDS {
        let program = command(name)?;
        let file = program.file_name().context("a program without a name")?;
        // One program may have many names, and behaves according to the one by which it is called.
        let stored = Path::new("/programs").join(file);
        guest.copy(&stored, &program);
        guest.link(Path::new(BIN).join(name), stored);
        programs.push(program);
    }
    programs.extend(plugins(&mut guest)?);
    for library in libraries(&programs)? {
        if !guest.has(&library) {
            guest.copy(&library, &library);
        }
    }
    Ok(guest)
}

/// The file of a command, with links resolved.
fn command(name: &str) -> Result<PathBuf> {
    let found = find(name).or_else(|| {
        // PATH may lack /usr/sbin, where the command may still be.
        let path = Path::new("/usr/sbin").join(name);
        path.is_file().then_some(path)
    });
    let found =
        found.with_context(|| format!("{name} is not installed: run `cargo xtask setup`"))?;
    found
        .canonicalize()
        .with_context(|| found.display().to_string())
}

fn plugins(guest: &mut Initramfs) -> Result<Vec<PathBuf>> {
    let directory = PLUGINS
        .iter()
        .map(Path::new)
        .find(|directory| directory.is_dir())
        .context("iptables' plugins (libxt_*.so) are not in the directories that Debian uses")?;
    let mut plugins = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "so") {
            guest.copy(&path, &path);
            plugins.push(path);
        }
    }
    Ok(plugins)
}

/// The shared libraries of all these programs, including the program interpreter.
fn libraries(programs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for program in programs {
        libraries.extend(ldd::libraries(program)?.unwrap_or_default());
    }
    libraries.sort();
    libraries.dedup();
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_a_missing_command() {
        let error = command("no-such-command").expect_err("it does not exist");
        assert!(error.to_string().contains("no-such-command"), "{error}");
    }
}
