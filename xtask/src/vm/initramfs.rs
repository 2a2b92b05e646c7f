//! Writes an initramfs: a cpio archive (newc) that the kernel unpacks into its root file system.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

/// Files by their path in the guest.
#[derive(Clone, Debug, Default)]
pub struct Initramfs {
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Directory,
    Link(PathBuf),
    /// An executable file, copied from this machine.
    Copy(PathBuf),
    Bytes(Vec<u8>),
}

impl Initramfs {
    /// An empty directory.
    pub fn directory(&mut self, path: impl AsRef<Path>) {
        self.add(path.as_ref(), Entry::Directory);
    }

    /// A symbolic link.
    pub fn link(&mut self, path: impl AsRef<Path>, target: impl Into<PathBuf>) {
        self.add(path.as_ref(), Entry::Link(target.into()));
    }

    /// A copy of a file of this machine.
    pub fn copy(&mut self, path: impl AsRef<Path>, from: impl Into<PathBuf>) {
        self.add(path.as_ref(), Entry::Copy(from.into()));
    }

    /// A file with these bytes.
    pub fn bytes(&mut self, path: impl AsRef<Path>, bytes: impl Into<Vec<u8>>) {
        self.add(path.as_ref(), Entry::Bytes(bytes.into()));
    }

    /// Whether the archive has that path.
    pub fn has(&self, path: &Path) -> bool {
        self.entries.contains_key(&inside(path))
    }

    fn add(&mut self, path: &Path, entry: Entry) {
        let path = inside(path);
        for parent in path
            .ancestors()
            .skip(1)
            .filter(|parent| *parent != Path::new(""))
        {
            let _kept = self
                .entries
                .entry(parent.to_owned())
                .or_insert(Entry::Directory);
        }
        let _replaced = self.entries.insert(path, entry);
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// When a file cannot be read, or the archive cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        let mut out = BufWriter::new(file);
        // A directory sorts before its contents, as the kernel requires.
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            let (kind, permissions, data) = match entry {
                Entry::Directory => (ModeFileType::Directory, 0o755, Vec::new()),
                Entry::Link(target) => {
                    let target = target.to_string_lossy().into_owned();
                    (ModeFileType::Symlink, 0o777, target.into_bytes())
                }
                Entry::Copy(from) => {
                    let data = fs::read(from).with_context(|| from.display().to_string())?;
                    (ModeFileType::Regular, 0o755, data)
                }
                Entry::Bytes(data) => (ModeFileType::Regular, 0o644, data.clone()),
            };
            let length = u32::try_from(data.len()).with_context(|| path.display().to_string())?;
            let mut writer = Builder::new(&path.to_string_lossy())
                .ino(number)
                .mode(permissions)
                .set_mode_file_type(kind)
                .write(&mut out, length);
            writer.write_all(&data)?;
            let _out = writer.finish()?;
        }
        let _out = trailer(&mut out)?;
        out.flush().with_context(|| path.display().to_string())
    }
}

/// Paths in the archive are relative to the guest's root.
fn inside(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_the_entries_that_the_kernel_unpacks() {
        let directory = tempfile::tempdir().expect("directory");
        let script = directory.path().join("script");
        fs::write(&script, "#!").expect("file");
        let mut initramfs = Initramfs::default();
        initramfs.copy("/usr/bin/script", &script);
        initramfs.link("/bin/other", "/usr/bin/script");
        initramfs.bytes("/etc/hosts", "127.0.0.1 localhost\n");
        initramfs.directory("/proc");
        let path = directory.path().join("archive");
        initramfs.write(&path).expect("written");

        let mut rest = fs::File::open(&path).expect("archive");
        let mut found = Vec::new();
        loop {
            let reader = cpio::newc::Reader::new(rest).expect("an entry");
            let entry = reader.entry();
            if entry.is_trailer() {
                break;
            }
            let (name, mode) = (entry.name().to_owned(), entry.mode());
            let mut data = Vec::new();
            rest = reader.to_writer(&mut data).expect("its data");
            found.push((name, mode, String::from_utf8(data).expect("text")));
        }
        let expected = [
            ("bin", 0o40755, ""),
            ("bin/other", 0o120_777, "/usr/bin/script"),
            ("etc", 0o40755, ""),
            ("etc/hosts", 0o100_644, "127.0.0.1 localhost\n"),
            ("proc", 0o40755, ""),
            ("usr", 0o40755, ""),
            ("usr/bin", 0o40755, ""),
            ("usr/bin/script", 0o100_755, "#!"),
        ];
        let expected = expected.map(|(name, mode, data)| (name.to_owned(), mode, data.to_owned()));
        assert_eq!(found, expected);
    }
}
