//! A pin: a name for our program in a BPF file system (bpffs).

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

/// Our program can't have a name.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// There is no bpffs.
    #[error(
        "{} is not in a BPF file system: mount one (`mount -t bpf bpf /sys/fs/bpf`), or, in a container, mount the \
         node's /sys/fs/bpf",
        directory.display()
    )]
    NoBpffs {
        /// Where to pin.
        directory: PathBuf,
    },
    /// It is mounted read-only.
    #[error(
        "the BPF file system of {} is read-only: mount it for writing, in a container without readOnly",
        directory.display()
    )]
    ReadOnly {
        /// Where to pin.
        directory: PathBuf,
    },
    /// The path is too long for a rule.
    #[error("{} is too long: netfilter's rules take paths of 511 bytes", path.display())]
    TooLong {
        /// The path of the pin.
        path: PathBuf,
    },
    /// Something else.
    #[error("cannot pin program exempt as {}", path.display())]
    Other {
        /// The path of the pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Pins `program` in `directory`, which is made if need be, in place of what was pinned before: another's rules may be
/// in the making, so there is no moment without a pin.
///
/// # Errors
/// [`PinError`].
pub(super) fn pin(program: &OwnedFd, directory: &Path) -> Result<Program, PinError> {
    let path = directory.join(programs::EXEMPT);
    let named = Program::pinned(&path).ok_or_else(|| PinError::TooLong { path: path.clone() })?;
    let beside = directory.join(format!("{}.new.{}", programs::EXEMPT, std::process::id()));
    let pin = || -> io::Result<()> {
        make(directory)?;
        // Left by a daemon of the same process id that was killed just then.
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

/// Whether `directory`, or the nearest above it that exists, is in a bpffs.
fn is_bpffs(directory: &Path) -> bool {
    directory
        .ancestors()
        .find_map(|path| statfs(path).ok())
        .is_some_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Makes the directory, for its owner only.
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
    // SAFETY: an attribute of the size given, whose path outlives the call.
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
    fn an_ordinary_directory_is_no_place_for_a_pin() {
        let directory = tempfile::tempdir().expect("directory");
        let below = directory.path().join("made/by/us");
        let program = OwnedFd::from(fs::File::open("/dev/null").expect("a descriptor"));
        let error = pin(&program, &below).expect_err("no bpffs");
        assert!(matches!(error, PinError::NoBpffs { .. }), "{error:?}");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        assert!(!below.exists(), "a directory was made all the same");
    }

    #[test]
    fn a_path_that_no_rule_can_name_is_refused() {
        let program = OwnedFd::from(fs::File::open("/dev/null").expect("a descriptor"));
        let long = PathBuf::from(format!("/{}", "x".repeat(520)));
        let error = pin(&program, &long).expect_err("too long");
        assert!(matches!(error, PinError::TooLong { .. }), "{error:?}");
    }
}
