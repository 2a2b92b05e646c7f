//! A directory whose files change: usually a mounted ConfigMap or Secret, in which the kubelet replaces
//! the symlink `..data` (kubernetes pkg/volume/util/atomic_writer.go).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::time::sleep;

use crate::dir::{DEBOUNCE, POLL, Watch, renew};

/// The kubelet's symlink to the files of the current version.
const VERSION: &str = "..data";
/// Maximum number of reads when the files are replaced during each.
const ATTEMPTS: usize = 5;

/// Watches a directory.
pub struct Directory {
    path: PathBuf,
    watch: Option<Watch>,
}

impl Directory {
    /// Watches `path` from now on; read it after this call. It need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        let watch = renew(None, &path);
        Self { path, watch }
    }

    /// Waits until something in it may have changed: returns soon after an inotify event, and after a second
    /// in any case, because inotify does not report every change.
    pub async fn changed(&mut self) {
        let event = async {
            match &self.watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = event => sleep(DEBOUNCE).await,
            () = sleep(POLL) => {}
        }
        self.watch = renew(self.watch.take(), &self.path);
    }
}

/// The result of `read` for the files in `path`, all of the same version.
///
/// # Errors
/// The directory does not exist, or was replaced during each read.
pub fn consistently<T>(path: &Path, read: impl Fn(&Path) -> T) -> io::Result<T> {
    for _ in 0..ATTEMPTS {
        let before = version(path)?;
        let found = read(&before);
        // If it was replaced, the kubelet may have removed some of the files before they were read.
        if version(path)? == before {
            return Ok(found);
        }
    }
    Err(io::Error::other("its files change each time they are read"))
}

/// The directory with the files of the current version.
fn version(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path.join(VERSION)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::canonicalize(path),
        version => version,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Replaces the files like the kubelet.
    fn publish(directory: &Path, version: &str, files: &[(&str, &str)]) {
        let data = directory.join(version);
        fs::create_dir(&data).expect("version");
        for (name, text) in files {
            fs::write(data.join(name), text).expect("file");
        }
        let link = directory.join("..data_tmp");
        symlink(version, &link).expect("link");
        fs::rename(&link, directory.join(VERSION)).expect("swap");
    }

    #[test]
    fn files_replaced_during_a_read_are_read_again() {
        let directory = tempfile::tempdir().expect("directory");
        publish(directory.path(), "..1", &[("a", "1"), ("b", "1")]);
        let swapped = std::cell::Cell::new(false);
        let both = consistently(directory.path(), |files| {
            let a = fs::read_to_string(files.join("a")).ok();
            if !swapped.replace(true) {
                publish(directory.path(), "..2", &[("a", "2"), ("b", "2")]);
                fs::remove_dir_all(directory.path().join("..1")).expect("removed");
            }
            (a, fs::read_to_string(files.join("b")).ok())
        });
        let two = || Some("2".to_owned());
        assert_eq!(both.expect("read"), (two(), two()));
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let directory = tempfile::tempdir().expect("directory");
        assert!(consistently(&directory.path().join("gone"), |_| ()).is_err());
        consistently(directory.path(), |_| ()).expect("files without ..data are read");
    }

    #[tokio::test]
    async fn a_replaced_symlink_is_noticed() {
        let directory = tempfile::tempdir().expect("directory");
        publish(directory.path(), "..1", &[("a", "1")]);
        let mut watched = Directory::new(directory.path().to_owned());
        publish(directory.path(), "..2", &[("a", "2")]);
        watched.changed().await;
        let read = consistently(directory.path(), |files| {
            fs::read_to_string(files.join("a"))
        });
        assert_eq!(read.expect("there").expect("read"), "2");
    }
}
