//! Reads text files of the kernel.
//!
//! Files of a process are not parsed by crate procfs (0.18): it reads `status` and `cgroup` as lines of UTF-8 and fails if the
//! name in one is not, although the daemon needs only the ids and the path in them.

use std::io;
use std::path::Path;

/// The text of a file in /proc or of a cgroup. Bytes that are not UTF-8 are replaced, because names in these files (mount
/// points, process names, cgroups) are any bytes, chosen by any user of the node.
///
/// # Errors
/// Those of reading the file.
pub fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let bytes = std::fs::read(path)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
