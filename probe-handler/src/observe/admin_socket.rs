//! The admin server's Unix socket: its file, its owner and its permissions.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

const DIRECTORY_MODE: u32 = 0o755;
/// Root only, because a client can read the state of all pods of the node.
const SOCKET_MODE: u32 = 0o600;
const BACKLOG: i32 = 128;

/// The socket's file. Dropping it removes the file if it is still the one that this daemon created.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

/// What exists at a socket's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A socket without a listener.
    Stale,
    /// A socket of another daemon.
    Answered,
}

/// Listens on a Unix socket at `path`, replacing a socket without a listener.
///
/// # Errors
/// Another daemon answers there, `path` is not a socket, or it can't be created.
pub fn bind(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    clear_the_way(path)?;
    listen(path).with_context(|| {
        format!(
            "cannot listen on the admin socket {}; set --admin-socket to a writable path",
            path.display()
        )
    })
}

/// Creates the parent directory, and removes a socket without a listener.
fn clear_the_way(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(parent)
            .with_context(|| {
                format!("cannot create the directory of the admin socket {shown}; set --admin-socket to another path")
            })?;
    }
    match look(path)? {
        Found::Nothing => Ok(()),
        Found::Stale => {
            fs::remove_file(path).with_context(|| format!("cannot remove the stale socket {shown}"))
        }
        Found::Answered => {
            bail!("another daemon answers on {shown}: set a different --admin-socket for this one")
        }
    }
}

/// Whether a daemon could listen at `path`, and what exists there; changes nothing.
///
/// # Errors
/// `path` is not a socket, or nothing can be created there.
pub fn look_ahead(path: &Path) -> anyhow::Result<Found> {
    let there = path.ancestors().skip(1).find(|ancestor| ancestor.exists());
    if let Some(directory) = there {
        nix::unistd::access(directory, nix::unistd::AccessFlags::W_OK)
            .with_context(|| format!("cannot write to {}", directory.display()))?;
    }
    look(path)
}

fn look(path: &Path) -> anyhow::Result<Found> {
    let shown = path.display();
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot read the state of the admin socket {shown}"));
        }
    };
    if !metadata.file_type().is_socket() {
        bail!("{shown} exists and is not a socket: set --admin-socket to another path");
    }
    match try_connect(path) {
        Ok(()) => Ok(Found::Answered),
        // A socket with a full backlog has a listener too.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Found::Answered),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Found::Stale),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        Err(error) => Err(error).with_context(|| {
            format!("cannot determine whether another daemon answers on {shown}; set --admin-socket to another path")
        }),
    }
}

fn try_connect(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.connect(&SockAddr::unix(path)?)
}

fn listen(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let metadata = fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: (metadata.dev(), metadata.ino()),
    };
    // Sets the mode before `listen`, because no client can connect until then.
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    socket.listen(BACKLOG)?;
    Ok((UnixListener::from_std(socket.into())?, file))
}

// === impl SocketFile ===

impl SocketFile {
    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the admin socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: anyhow::Result<(UnixListener, SocketFile)>) -> String {
        let error = result.expect_err("bind fails");
        format!("{error:#}")
    }

    #[tokio::test]
    async fn only_root_may_use_the_socket_and_its_directory_is_created() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("a/b/admin.sock");
        let (_listener, file) = bind(&path).expect("bind");
        let mode = |path: &Path| fs::metadata(path).expect("metadata").mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("parent")) & 0o022, 0);
        drop(file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
        assert!(path.exists(), "the standard library leaves the file behind");
        let (_listener, _file) = bind(&path).expect("a stale socket is replaced");
        let text = message(bind(&path));
        assert!(text.contains("another daemon answers on"), "{text}");
        assert!(text.contains("--admin-socket"), "{text}");
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_socket_with_a_full_backlog_is_live() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("admin.sock");
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("socket");
        let address = SockAddr::unix(&path).expect("address");
        socket.bind(&address).expect("bind");
        socket.listen(0).expect("listen");
        let _queued = std::os::unix::net::UnixStream::connect(&path).expect("connect");
        assert_eq!(
            try_connect(&path).expect_err("the backlog is full").kind(),
            io::ErrorKind::WouldBlock
        );
        let text = message(bind(&path));
        assert!(text.contains("another daemon answers on"), "{text}");
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_socket_is_never_removed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("admin.sock");
        fs::write(&path, "precious").expect("write");
        let text = message(bind(&path));
        assert!(text.contains("is not a socket"), "{text}");
        assert_eq!(fs::read_to_string(&path).expect("read"), "precious");
    }

    #[tokio::test]
    async fn an_unwritable_path_is_named_in_the_error() {
        let text = message(bind(Path::new("/proc/none/admin.sock")));
        assert!(text.contains("/proc/none/admin.sock"), "{text}");
        assert!(text.contains("--admin-socket"), "{text}");
        let long = format!("/tmp/{}", "x".repeat(120));
        let text = message(bind(Path::new(&long)));
        assert!(text.contains("--admin-socket"), "{text}");
    }

    #[tokio::test]
    async fn another_daemons_socket_is_left_behind() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("admin.sock");
        let (_listener, file) = bind(&path).expect("bind");
        fs::rename(&path, dir.path().join("old")).expect("rename");
        let _other = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        drop(file);
        assert!(path.exists(), "the other daemon's socket stays");
    }
}
