//! Pins: names for programs, maps and links in a BPF file system (bpffs), by which they outlive the process that created
//! them.

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use probe_handler_common::{maps, programs};

/// An object can't be pinned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is not in a bpffs.
    #[error(
        "{} is not in a BPF file system: mount one (`mount -t bpf bpf /sys/fs/bpf`), or, in a container, mount the \
         node's /sys/fs/bpf",
        directory.display()
    )]
    NoBpffs {
        /// Where to pin.
        directory: PathBuf,
    },
    /// The bpffs is mounted read-only.
    #[error(
        "the BPF file system of {} is read-only: mount it for writing, in a container without readOnly",
        directory.display()
    )]
    ReadOnly {
        /// Where to pin.
        directory: PathBuf,
    },
    /// Something else.
    #[error("cannot make {}", path.display())]
    Other {
        /// The directory or pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A directory of pins, which only root can access.
#[derive(Clone, Debug)]
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// Opens the directory, and creates it if it does not exist. Mounts nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(directory: &Path) -> Result<Self, Error> {
        let this = Self::in_bpffs(directory)?;
        this.create()?;
        Ok(this)
    }

    /// Checks whether pins can be created in `directory`, which need not exist. Creates nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub fn check(directory: &Path) -> Result<(), Error> {
        let this = Self::in_bpffs(directory)?;
        let existing = directory.ancestors().find(|path| path.exists());
        let existing = existing.unwrap_or(directory);
        nix::unistd::access(existing, nix::unistd::AccessFlags::W_OK)
            .map_err(|errno| this.failed(existing, errno.into()))
    }

    fn in_bpffs(directory: &Path) -> Result<Self, Error> {
        let directory = directory.to_owned();
        match is_bpffs(&directory) {
            true => Ok(Self { directory }),
            false => Err(Error::NoBpffs { directory }),
        }
    }

    /// Creates the directory, unless it exists.
    ///
    /// # Errors
    /// [`Error`].
    pub fn create(&self) -> Result<(), Error> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory);
        made.map_err(|source| self.failed(&self.directory, source))
    }

    /// The path of pin `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The number of pin `name`: a pin that replaces it has another number. `None` if there is no such pin.
    pub fn number(&self, name: &str) -> Option<u64> {
        fs::metadata(self.path(name)).ok().map(|pin| pin.ino())
    }

    /// Whether the attachments of an earlier daemon are pinned here.
    pub fn exist(&self) -> bool {
        self.path(&link(programs::SOCK_OPS)).exists()
    }

    /// Whether an earlier daemon has left attachments here that record connections where the rules of this version look for them.
    pub fn serve(&self) -> bool {
        self.exist() && self.path(maps::CONNECTING_PIN).exists()
    }

    /// What to do about the attachments of an earlier daemon, if there are any, for a daemon that can't replace them.
    pub(crate) fn remain(&self) -> Option<String> {
        self.exist().then(|| {
            format!(
                "the attachments of an earlier daemon, pinned in {}, stay active with its endpoints, beside those of this daemon: \
                 `probe-handler cleanup` removes them",
                self.directory.display()
            )
        })
    }

    /// Pins `object` as `name`, and replaces an existing pin atomically.
    ///
    /// # Errors
    /// [`Error`].
    pub fn replace(&self, object: BorrowedFd<'_>, name: &str) -> Result<PathBuf, Error> {
        self.take_place(self.beside(object, name)?)
    }

    /// Pins `object` beside the pin `name`, which it is to replace.
    fn beside(&self, object: BorrowedFd<'_>, name: &str) -> Result<Beside, Error> {
        let path = self.path(name);
        // The temporary name contains no dot, because the kernel refuses names with a dot (EPERM).
        let beside = self.path(&format!("{name}{BESIDE}{}", std::process::id()));
        // A daemon that had the same process id may have been killed between the two steps, and left this pin.
        let pinned = forget(&beside).and_then(|()| obj_pin(object, &beside));
        pinned.map_err(|source| self.failed(&path, source))?;
        Ok(Beside { beside, path })
    }

    /// Like [`Pins::replace`] in two steps, for the attachment of `program`: all attachments are pinned before the first takes its
    /// place, because programs of two daemons do not work together.
    ///
    /// # Errors
    /// [`Error`].
    pub fn link_beside(&self, attached: &FdLink, program: &str) -> Result<Beside, Error> {
        let name = link(program);
        let fd = attached
            .info()
            .map_err(io::Error::other)
            .and_then(|info| link_by_id(info.id()))
            .map_err(|source| self.failed(&self.path(&name), source))?;
        self.beside(fd.as_fd(), &name)
    }

    /// The second step.
    ///
    /// # Errors
    /// [`Error`].
    pub fn take_place(&self, Beside { beside, path }: Beside) -> Result<PathBuf, Error> {
        fs::rename(&beside, &path).map_err(|source| self.failed(&path, source))?;
        Ok(path)
    }

    /// Removes the temporary pins of processes that ended in the middle of [`Pins::replace`]. Logs failures.
    pub fn remove_leftovers(&self) {
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let maker = name.to_str().and_then(maker);
            if maker.is_none_or(|pid| Path::new("/proc").join(pid.to_string()).exists()) {
                continue;
            }
            if let Err(error) = forget(&entry.path()) {
                let path = entry.path();
                tracing::warn!(path = %path.display(), %error, "cannot remove a pin of a process that has ended");
            }
        }
    }

    fn failed(&self, path: &Path, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Error::ReadOnly {
                directory: self.directory.clone(),
            },
            _ => Error::Other {
                path: path.to_owned(),
                source,
            },
        }
    }
}

/// A pin that is to take the place of another.
#[must_use]
pub struct Beside {
    beside: PathBuf,
    path: PathBuf,
}

/// Separates the name of a pin that is being replaced from the id of the process that replaces it.
const BESIDE: &str = "-new-";

/// The process that created `name`, if that is a temporary pin of [`Pins::replace`].
fn maker(name: &str) -> Option<u32> {
    let (_, pid) = name.rsplit_once(BESIDE)?;
    pid.parse().ok()
}

/// The name of the pin of a program's attachment.
pub fn link(program: &str) -> String {
    format!("link-{program}")
}

/// Removes all pins in `directory`, and the directory. The kernel then frees what nothing else refers to. Returns
/// whether the directory existed.
///
/// # Errors
/// Those of readdir and unlink.
pub fn remove_all(directory: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    if !is_bpffs(directory) {
        return Err(io::Error::other(format!(
            "{} is not in a BPF file system: nothing is removed there",
            directory.display()
        )));
    }
    for entry in entries {
        forget(&entry?.path())?;
    }
    fs::remove_dir(directory)?;
    Ok(true)
}

fn forget(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether `directory`, or the nearest above it that exists, is in a bpffs.
fn is_bpffs(directory: &Path) -> bool {
    directory
        .ancestors()
        .find_map(|path| statfs(path).ok())
        .is_some_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// `BPF_OBJ_PIN` of bpf(2).
fn obj_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    const BPF_OBJ_PIN: libc::c_long = 6;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Attr {
        address: path.as_ptr() as u64,
        fd: object.as_raw_fd().cast_unsigned(),
        flags: 0,
    };
    bpf(BPF_OBJ_PIN, &attr).map(drop)
}

/// `BPF_LINK_GET_FD_BY_ID` of bpf(2).
fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
    let attr = Attr {
        address: id.into(),
        fd: 0,
        flags: 0,
    };
    let fd = bpf(BPF_LINK_GET_FD_BY_ID, &attr)?;
    // SAFETY: bpf(2) has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `union bpf_attr`, as far as these commands use it. An id is in the first four bytes, which are the low bytes of an
/// address on little-endian machines, the only ones supported.
#[repr(C)]
struct Attr {
    address: u64,
    fd: u32,
    flags: u32,
}

fn bpf(command: libc::c_long, attr: &Attr) -> io::Result<i32> {
    // SAFETY: the attribute has the given size, and the callers ensure that what it points to outlives the
    // call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<Attr>(),
        )
    };
    match i32::try_from(result) {
        Ok(result @ 0..) => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_directory_is_no_place_for_pins() {
        let directory = tempfile::tempdir().expect("directory");
        let below = directory.path().join("made/by/us");
        let error = Pins::new(&below).expect_err("no bpffs");
        assert!(matches!(error, Error::NoBpffs { .. }), "{error:?}");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        assert!(!below.exists(), "a directory was made all the same");
    }

    #[test]
    fn pins_of_processes_that_have_ended_are_removed() {
        // Not a bpffs: only names matter.
        let directory = tempfile::tempdir().expect("directory");
        let pins = Pins {
            directory: directory.path().to_owned(),
        };
        let living = format!("link-connect4-new-{}", std::process::id());
        // Above the largest process id that Linux allows.
        let dead = "link-connect4-new-4194305";
        let others = ["link-connect4", "exempt", "a-new-name", &living];
        for name in others.iter().chain([&dead]) {
            fs::write(pins.path(name), "").expect("a file");
        }
        pins.remove_leftovers();
        assert!(!pins.path(dead).exists());
        for name in others {
            assert!(pins.path(name).exists(), "{name}");
        }
    }

    #[test]
    fn nothing_is_removed_from_an_ordinary_directory() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("file");
        fs::write(&file, "precious").expect("file");
        assert!(remove_all(directory.path()).is_err());
        assert!(file.exists());
        let none = directory.path().join("none");
        assert!(!remove_all(&none).expect("nothing there"));
    }
}
