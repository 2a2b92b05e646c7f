//! Kernel modules, in the order in which the host has listed them.

use std::fs::{self, File};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::errno::Errno;

/// Paths of modules, one a line, each after those that it depends on.
const LIST: &str = "/modules/order";

/// Loads them; a line for each that the kernel does not take. The suite shows what is missed then.
///
/// # Errors
/// When there is no list, or a module cannot be opened.
pub fn load() -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for path in fs::read_to_string(LIST).context(LIST)?.lines() {
        let file = File::open(path).with_context(|| path.to_owned())?;
        // SAFETY: an open descriptor, an empty string for the parameters, no flags.
        let result =
            unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        match Errno::result(result) {
            Ok(_) | Err(Errno::EEXIST) => {}
            Err(error) => faults.push(format!("{path}: {error}")),
        }
    }
    Ok(faults)
}
