//! Loads kernel modules in the order of the host's list.

use std::ffi::CStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use crate::wait;

/// File with the modules' paths, one per line, each after its dependencies.
const LIST: &str = "/modules/order";

/// Loads them; returns a line for each that the kernel refuses. The suite fails where one is missing.
///
/// # Errors
/// When there is no list, or a module cannot be opened.
pub fn load() -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for path in fs::read_to_string(LIST).context(LIST)?.lines() {
        let file = File::open(path).with_context(|| path.to_owned())?;
        // SAFETY: the descriptor is open, the parameters are an empty C string, and there are no flags.
        let result =
            unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        match Errno::result(result) {
            Ok(_) | Err(Errno::EEXIST) => {}
            Err(error) => faults.push(format!("{path}: {error}")),
        }
    }
    Ok(faults)
}

/// How long a module may stay in use after its users have ended.
const UNUSED: Duration = Duration::from_secs(20);

/// Runs `work` while module `name` is not loaded. Nothing else loads it, because a guest has no modprobe.
///
/// # Errors
/// When the module can't be removed or loaded again; those of `work`.
pub fn without(name: &CStr, work: impl FnOnce() -> Result<()>) -> Result<()> {
    wait::until("the module's last user", UNUSED, || {
        // SAFETY: a C string, and flags.
        let result =
            unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
        Errno::result(result).ok().map(drop)
    })?;
    let worked = work();
    let faults = load()?;
    ensure!(faults.is_empty(), "loading modules again: {faults:?}");
    worked
}
