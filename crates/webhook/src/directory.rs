//! A directory whose files change: a mounted ConfigMap or Secret as a rule, in which the kubelet swaps the
//! symlink `..data` (kubernetes pkg/volume/util/atomic_writer.go).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::time::sleep;

use sources::dir::{DEBOUNCE, POLL, Watch, renew};

/// The kubelet's symlink to the files of one version.
const VERSION: &str = "..data";
/// How often to read again what was swapped meanwhile.
const ATTEMPTS: usize = 5;

/// Tells when to look again.
pub struct Directory {
    path: PathBuf,
    watch: Option<Watch>,
}

impl Directory {
    /// Watches `path`, from now on: look at it after that. It may not be there yet.
    pub fn new(path: PathBuf) -> Self {
        let watch = renew(None, &path);
        Self { path, watch }
    }

    /// Waits until something in it may have changed: soon after inotify says so, and every second besides, for
    /// what inotify can't see.
    pub async fn changed(&mut self) {
        let told = async {
            match &self.watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = told => sleep(DEBOUNCE).await,
            () = sleep(POLL) => {}
        }
        self.watch = renew(self.watch.take(), &self.path);
    }
}

/// What `read` makes of the files in `path`, all of one version.
///
/// # Errors
/// The directory is not there, or is swapped all the time.
pub fn consistently<T>(path: &Path, read: impl Fn(&Path) -> T) -> io::Result<T> {
    for _ in 0..ATTEMPTS {
        let before = version(path)?;
        let found = read(&before);
        // Had it been swapped, the kubelet might have removed half of what we read.
        if version(path)? == before {
            return Ok(found);
        }
    }
    Err(io::Error::other("it is never the same twice"))
}

/// The directory in which the files of the current version are.
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

    /// Writes files as the kubelet does, over what is there.
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
    fn files_swapped_while_they_are_read_are_read_again() {
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
    fn a_directory_that_is_not_there_is_no_empty_one() {
        let directory = tempfile::tempdir().expect("directory");
        assert!(consistently(&directory.path().join("gone"), |_| ()).is_err());
        consistently(directory.path(), |_| ()).expect("plain files will do");
    }

    #[tokio::test]
    async fn the_swap_of_the_symlink_is_noticed() {
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
