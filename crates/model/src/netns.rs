//! Identity of network namespaces.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The identity of a network namespace: device and inode number of its file on nsfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    /// Device number of nsfs.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl NetnsId {
    /// The identity of the namespace file at `path`, without opening it.
    ///
    /// # Errors
    /// Those of `stat`.
    pub fn at(path: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
        })
    }
}
