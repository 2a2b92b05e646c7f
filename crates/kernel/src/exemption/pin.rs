//! Pins program `exempt`, that is, gives it a path in a BPF file system (bpffs).

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use probe_handler_common::programs;

use super::expression::Program;

/// The program can't be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The directory is not in a bpffs.
    #[error(
        "{} is not in a BPF file system: mount one (`mount -t bpf bpf /sys/fs/bpf`), or, in a container, mount the \
         node's /sys/fs/bpf",
        directory.display()
    )]
    NoBpffs {
        /// The directory for the pin.
        directory: PathBuf,
    },
    /// The bpffs is mounted read-only.
    #[error(
        "the BPF file system that contains {} is read-only: mount it read-write (in a container, without readOnly)",
        directory.display()
    )]
    ReadOnly {
        /// The directory for the pin.
        directory: PathBuf,
    },
    /// The path is too long for a rule.
    #[error("path {} is too long: netfilter rules accept paths of at most 511 bytes", path.display())]
    TooLong {
        /// The path of the pin.
        path: PathBuf,
    },
    /// Another cause.
    #[error("cannot pin program exempt as {}", path.display())]
    Other {
        /// The path of the pin.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Pins `program` in `directory`, which is created if necessary. An existing pin is replaced atomically, because another
/// daemon may be installing rules that name this path.
///
/// # Errors
/// [`PinError`].
pub(super) fn pin(program: &OwnedFd, directory: &Path) -> Result<Program, PinError> {
    let path = directory.join(programs::EXEMPT);
    let named = Program::pinned(&path).ok_or_else(|| PinError::TooLong { path: path.clone() })?;
    let beside = directory.join(format!("{}.new.{}", programs::EXEMPT, std::process::id()));
    let pin = || -> io::Result<()> {
        make(directory)?;
        // Left behind by a daemon with the same process id that was killed between pin and rename.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        obj_pin(program, &beside)?;
        fs::rename(&beside, &path)
    };
    if !is_bpffs(directory) {
        return Err(PinError::NoBpffs {
            directory: directory.to_owned(),
        });
    }
    pin().map_err(|source| match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => PinError::ReadOnly {
            directory: directory.to_owned(),
        },
        _ => PinError::Other {
            path: path.clone(),
            source,
        },
    })?;
    Ok(named)
}

/// Whether `directory`, or its nearest existing parent, is in a bpffs.
fn is_bpffs(directory: &Path) -> bool {
    directory
        .ancestors()
        .find_map(|path| statfs(path).ok())
        .is_some_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Creates the directory, accessible by its owner only.
fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}

/// `BPF_OBJ_PIN` of bpf(2).
fn obj_pin(program: &OwnedFd, path: &Path) -> io::Result<()> {
    const BPF_OBJ_PIN: libc::c_long = 6;
    /// `union bpf_attr`, as far as this command uses it.
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Attr {
        path: path.as_ptr() as u64,
        fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
    };
    // SAFETY: the attribute has the given size, and its path outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_PIN,
            &raw const attr,
            size_of::<Attr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_outside_a_bpffs_is_refused() {
        let directory = tempfile::tempdir().expect("directory");
        let below = directory.path().join("made/by/us");
        let program = OwnedFd::from(fs::File::open("/dev/null").expect("a descriptor"));
        let error = pin(&program, &below).expect_err("no bpffs");
        assert!(matches!(error, PinError::NoBpffs { .. }), "{error:?}");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        assert!(
            !below.exists(),
            "the directory was created despite the error"
        );
    }

    #[test]
    fn a_path_that_is_too_long_for_a_rule_is_refused() {
        let program = OwnedFd::from(fs::File::open("/dev/null").expect("a descriptor"));
        let long = PathBuf::from(format!("/{}", "x".repeat(520)));
        let error = pin(&program, &long).expect_err("too long");
        assert!(matches!(error, PinError::TooLong { .. }), "{error:?}");
    }
}
