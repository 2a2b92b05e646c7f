//! The settings as files: a mounted ConfigMap with one file for each key, read again after each change.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{ENABLED, Holder, PORT, PREFIX, SettingsError, parse};
use crate::Rewriting;
use sources::directory::{Directory, consistently};

/// Maximum file size, in bytes: no setting is longer.
const FILE_MAX: u64 = 4096;

const KEYS: [&str; 3] = [ENABLED, PORT, PREFIX];

/// The settings in `directory`.
///
/// # Errors
/// The directory or a file in it can't be read, or a value is invalid.
pub fn read(directory: &Path) -> Result<Rewriting, SettingsError> {
    consistently(directory, |directory| parse(|key| value(directory, key)))?
}

/// The text in file `key`; `None` if there is no such file.
fn value(directory: &Path, key: &'static str) -> Result<Option<String>, SettingsError> {
    let read = || {
        let mut text = String::new();
        let _ = fs::File::open(directory.join(key))?
            .take(FILE_MAX + 1)
            .read_to_string(&mut text)?;
        if text.len() as u64 > FILE_MAX {
            return Err(io::Error::other(format!("longer than {FILE_MAX} bytes")));
        }
        Ok(text)
    };
    match read() {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SettingsError::Read { key, source }),
    }
}

/// Whether the directory has no file for any of the keys.
pub(super) fn is_empty(directory: &Path) -> bool {
    directory.is_dir() && KEYS.iter().all(|key| !directory.join(key).exists())
}

/// Follows the settings in `path`. Never returns.
pub async fn follow<B>(path: PathBuf, mut holder: Holder<B>) {
    let mut directory = Directory::new(path.clone());
    let place = path.display().to_string();
    loop {
        // When a mounted ConfigMap is deleted, the kubelet leaves an empty directory.
        if !holder.is_waiting() && is_empty(&path) {
            holder.missing(&place);
        } else {
            holder.read(&place, read(&path).map_err(|error| error.to_string()));
        }
        directory.changed().await;
    }
}
