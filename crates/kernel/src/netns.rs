//! Network namespaces: opens them, identifies them, and runs code inside one.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

use model::netns::NetnsId;
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};

/// An open network namespace. Holding it keeps a dead pod's namespace alive: drop it with the pod.
#[derive(Debug)]
pub struct Netns {
    file: File,
    id: NetnsId,
}

/// `SO_NETNS_COOKIE` of include/uapi/asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// `NSFS_MAGIC` of include/uapi/linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;

nix::ioctl_none_bad!(
    /// `NS_GET_NSTYPE` of include/uapi/linux/nsfs.h: the CLONE_NEW* flag of the namespace.
    ns_get_nstype,
    0xb703
);

impl Netns {
    /// Opens the namespace at `path` (`/var/run/netns/x`, `/proc/1/ns/net`).
    ///
    /// # Errors
    /// Those of `open`; `InvalidInput` if the file is not a network namespace.
    pub fn open(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        // The path is input: opening a FIFO or a terminal would block until its other end is open.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        let not_a_namespace = |what: &str| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is {what}, not a network namespace", path.display()),
            )
        };
        if nix::sys::statfs::fstatfs(&file)?.filesystem_type().0 as i64 != NSFS_MAGIC {
            return Err(not_a_namespace("an ordinary file"));
        }
        // SAFETY: the ioctl takes no argument, and the descriptor is of nsfs.
        let kind = unsafe { ns_get_nstype(file.as_raw_fd()) }?;
        if kind != libc::CLONE_NEWNET {
            return Err(not_a_namespace("a namespace of another kind"));
        }
        let meta = file.metadata()?;
        let id = NetnsId {
            device: meta.dev(),
            inode: meta.ino(),
        };
        Ok(Self { file, id })
    }

    /// Opens the calling thread's namespace.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Its identity.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `inside` with the calling thread in this namespace. `inside` must not await, because the whole
    /// thread is in the namespace until it returns. Entering and leaving takes about 4 µs.
    ///
    /// # Errors
    /// Those of `setns` when entering. If leaving fails, the process aborts, because a thread that stays in a
    /// pod's namespace would do the daemon's other work in the pod's network.
    pub fn within<T>(&self, inside: impl FnOnce() -> T) -> io::Result<T> {
        let home = host_netns()?;
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        let _back = NetnsGuard(home);
        Ok(inside())
    }

    /// Its cookie, by which eBPF programs identify it; `None` before Linux 5.14.
    pub fn cookie(&self) -> Option<u64> {
        let socket = self
            .within(|| Socket::new(Domain::IPV4, Type::STREAM, None))
            .ok()?
            .ok()?;
        let mut cookie = 0_u64;
        let mut length = size_of_val(&cookie) as libc::socklen_t;
        // SAFETY: the socket is open, and the value is a u64 of the given length.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        (result == 0).then_some(cookie)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The daemon's own namespace, opened once, before any thread enters another one.
fn host_netns() -> io::Result<&'static Netns> {
    static HOME: OnceLock<Netns> = OnceLock::new();
    if let Some(home) = HOME.get() {
        return Ok(home);
    }
    // Opened through this thread, which is in the daemon's namespace here; the main thread may be in a pod's.
    let home = Netns::current()?;
    Ok(HOME.get_or_init(|| home))
}

/// Returns the thread to the daemon's namespace, even after a panic.
struct NetnsGuard(&'static Netns);

impl Drop for NetnsGuard {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.0.file, CloneFlags::CLONE_NEWNET) {
            // Does not use the log, because another thread writes its lines.
            let _ = writeln!(
                io::stderr(),
                "cannot leave a pod's network namespace: aborting: {error}"
            );
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_for_another_file_names_its_path() {
        let error = Netns::open(Path::new("/proc/self/ns/uts")).expect_err("uts");
        assert!(error.to_string().contains("/proc/self/ns/uts"), "{error}");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let error = Netns::open(Path::new("/proc/version")).expect_err("a file");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(Netns::open(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn a_fifo_is_refused_without_waiting_for_its_writer() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        let error = Netns::open(&path).expect_err("a fifo");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_namespace_has_one_identity_by_any_path() {
        let one = Netns::current().expect("own namespace");
        let two = Netns::open(Path::new("/proc/self/ns/net")).expect("own namespace");
        assert_eq!(one.id(), two.id());
        assert_eq!(
            NetnsId::at(Path::new("/proc/self/ns/net")).expect("stat"),
            one.id()
        );
    }
}
