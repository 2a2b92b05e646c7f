//! Telling network namespaces apart.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A network namespace is what its (device, inode) on nsfs says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    /// Device number of nsfs.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl NetnsId {
    /// Of the file at `path`, without opening it.
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
