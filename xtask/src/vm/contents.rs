//! What is in the guest: our binaries, which are static, and the commands that they call, with the libraries of these.
//! There is no distribution; these are the files that the namespace suite uses on this machine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::initramfs::Initramfs;
use crate::ldd;
use crate::shell::find;

/// Every command that the testbed calls, and nothing else.
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
    "setpriv",
    "unshare",
    "nsenter",
];

/// Where iptables has its matches and targets.
const PLUGINS: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/xtables",
    "/usr/lib64/xtables",
    "/usr/lib/xtables",
];

/// nft asks these for names.
const TABLES: &[&str] = &["/etc/protocols", "/etc/services"];

/// Where the programs are in the guest.
const BIN: &str = "/bin";

/// The guest's files, without kernel modules and arguments. `daemon` and `testbed` are our binaries.
///
/// # Errors
/// When a command is not on this machine, or its libraries can't be told.
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
        // One program may have many names, and looks at the one it is called by.
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

/// The file of a command, links followed.
fn command(name: &str) -> Result<PathBuf> {
    let found = find(name).or_else(|| {
        // A login without /usr/sbin in PATH still has them there.
        let path = Path::new("/usr/sbin").join(name);
        path.is_file().then_some(path)
    });
    let found =
        found.with_context(|| format!("{name} is not on this machine: cargo xtask setup"))?;
    found
        .canonicalize()
        .with_context(|| found.display().to_string())
}

fn plugins(guest: &mut Initramfs) -> Result<Vec<PathBuf>> {
    let directory = PLUGINS
        .iter()
        .map(Path::new)
        .find(|directory| directory.is_dir())
        .context("iptables' plugins (libxt_*.so) are not where Debian has them")?;
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

/// The shared libraries of all of these, the program interpreter too.
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
    fn a_command_that_is_not_there_is_named() {
        let error = command("no-such-command").expect_err("it does not exist");
        assert!(error.to_string().contains("no-such-command"), "{error}");
    }
}
