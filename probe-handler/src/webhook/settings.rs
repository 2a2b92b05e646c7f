//! The settings that hold for all pods: the files of a mounted ConfigMap, read again when they change.
//!
//! One file for each key. A key that is not there has its default; what can't be read leaves everything as it
//! was: a slip of the pen in a ConfigMap neither turns rewriting on nor off.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::Rewriting;
use super::decide::parse_bool;
use super::directory::{Directory, consistently};
use super::metrics::Metrics;

/// Whether probes are rewritten where the pod does not say: the name that Istio gives it
/// (`sidecarInjectorWebhook.rewriteAppHTTPProbe`).
pub const ENABLED: &str = "rewriteAppHTTPProbe";
/// The port that probes are rewritten to.
pub const PORT: &str = "rewritePort";
/// What stands before `/app-health/...`.
pub const PREFIX: &str = "pathPrefix";
/// Longest file, in bytes: no setting is longer.
const FILE_MAX: u64 = 4096;

/// Why settings can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The directory can't be read.
    #[error("{0}")]
    Directory(#[from] io::Error),
    /// A file can't be read.
    #[error("{key}: {source}")]
    Read {
        /// Its name.
        key: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// A value is wrong.
    #[error("{key} = {value:?}: {remedy}")]
    Wrong {
        /// Its name.
        key: &'static str,
        /// As it is.
        value: String,
        /// What to give instead.
        remedy: String,
    },
}

/// The settings in `directory`.
///
/// # Errors
/// The directory or a file in it can't be read, or a value is wrong.
pub fn read(directory: &Path) -> Result<Rewriting, SettingsError> {
    consistently(directory, parse)?
}

fn parse(directory: &Path) -> Result<Rewriting, SettingsError> {
    let mut settings = Rewriting::default();
    if let Some(text) = value(directory, ENABLED)? {
        settings.enabled = parse_bool(&text).ok_or_else(|| {
            let remedy = "give true or false";
            SettingsError::wrong(ENABLED, &text, remedy)
        })?;
    }
    if let Some(text) = value(directory, PORT)? {
        settings.port = text
            .parse()
            .map_err(|_| SettingsError::wrong(PORT, &text, "give a port, 1 to 65535"))?;
    }
    if let Some(text) = value(directory, PREFIX)? {
        settings.prefix = text
            .parse()
            .map_err(|error| SettingsError::wrong(PREFIX, &text, error))?;
    }
    Ok(settings)
}

impl SettingsError {
    fn wrong(key: &'static str, value: &str, remedy: impl ToString) -> Self {
        Self::Wrong {
            key,
            value: value.to_owned(),
            remedy: remedy.to_string(),
        }
    }
}

/// The text in file `key`, without white space around it; none if there is no such file, or nothing in it.
fn value(directory: &Path, key: &'static str) -> Result<Option<String>, SettingsError> {
    let read = || {
        let mut text = String::new();
        let _ = fs::File::open(directory.join(key))?
            .take(FILE_MAX + 1)
            .read_to_string(&mut text)?;
        if text.len() as u64 > FILE_MAX {
            return Err(io::Error::other("longer than any setting"));
        }
        Ok(text)
    };
    match read() {
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SettingsError::Read { key, source }),
    }
}

/// Follows the settings in `path`, and tells `tx` what holds. `first` is dropped with the first good ones. Never
/// ends.
pub async fn follow<B>(
    path: PathBuf,
    tx: watch::Sender<Arc<Rewriting>>,
    metrics: Arc<Metrics>,
    first: B,
) {
    let mut first = Some(first);
    let mut directory = Directory::new(path.clone());
    let mut told: Option<Result<Rewriting, String>> = None;
    loop {
        let settings = read(&path).map_err(|error| error.to_string());
        if told.as_ref() != Some(&settings) {
            metrics.settings_read(settings.is_ok());
            match &settings {
                Ok(settings) => {
                    tracing::info!(directory = ?path, settings = ?settings, "settings");
                    metrics.set_enabled(settings.enabled);
                    let _ = tx.send_replace(Arc::new(settings.clone()));
                    first = None;
                }
                Err(error) => {
                    let meanwhile = match first {
                        Some(_) => "no pod is rewritten before they can",
                        None => "the last good ones hold",
                    };
                    tracing::error!(directory = ?path, %error, meanwhile, "these settings can't be used");
                }
            }
            told = Some(settings);
        }
        directory.changed().await;
    }
}

#[cfg(test)]
mod tests;
