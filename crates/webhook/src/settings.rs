//! The settings for all pods: the keys of a ConfigMap, watched in the API server or mounted as files.
//!
//! A missing key has its default. Settings that can't be read change nothing: a typo in a ConfigMap neither
//! enables nor disables rewriting.

pub mod config_map;
pub mod files;

use std::io;
use std::sync::Arc;

use tokio::sync::watch;

use super::Rewriting;
use super::metrics::Metrics;
use pods::probers::parse_bool;

/// Whether probes of pods without the annotation are rewritten. The name is Istio's
/// (`sidecarInjectorWebhook.rewriteAppHTTPProbe`).
pub const ENABLED: &str = "rewriteAppHTTPProbe";
/// The port of rewritten probes.
pub const PORT: &str = "rewritePort";
/// The prefix of `/app-health/...`.
pub const PREFIX: &str = "pathPrefix";

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
        /// The system's error.
        source: io::Error,
    },
    /// A value is invalid.
    #[error("{key} = {value:?}: {remedy}")]
    InvalidValue {
        /// Its name.
        key: &'static str,
        /// The value.
        value: String,
        /// What is expected instead.
        remedy: String,
    },
}

/// Parses the settings. `value` returns the text of a key, or `None` if it is not set.
fn parse(
    value: impl Fn(&'static str) -> Result<Option<String>, SettingsError>,
) -> Result<Rewriting, SettingsError> {
    let value = |key| -> Result<Option<String>, SettingsError> {
        let text = value(key)?.map(|text| text.trim().to_owned());
        Ok(text.filter(|text| !text.is_empty()))
    };
    let mut settings = Rewriting::default();
    if let Some(text) = value(ENABLED)? {
        settings.enabled = parse_bool(&text).ok_or_else(|| {
            let remedy = "expected true or false";
            SettingsError::wrong(ENABLED, &text, remedy)
        })?;
    }
    if let Some(text) = value(PORT)? {
        settings.port = text
            .parse()
            .map_err(|_| SettingsError::wrong(PORT, &text, "expected a port from 1 to 65535"))?;
    }
    if let Some(text) = value(PREFIX)? {
        settings.prefix = text
            .parse()
            .map_err(|error| SettingsError::wrong(PREFIX, &text, error))?;
    }
    Ok(settings)
}

impl SettingsError {
    fn wrong(key: &'static str, value: &str, remedy: impl ToString) -> Self {
        Self::InvalidValue {
            key,
            value: value.to_owned(),
            remedy: remedy.to_string(),
        }
    }
}

/// Publishes the settings in effect.
pub struct Holder<B> {
    tx: watch::Sender<Arc<Rewriting>>,
    metrics: Arc<Metrics>,
    /// Dropped when the first valid settings are read.
    first: Option<B>,
    last: Option<Result<Rewriting, String>>,
    /// Whether it was logged that the settings can't be read.
    warned: bool,
}

impl<B> Holder<B> {
    /// Sends the settings in effect to `tx` and counts reads in `metrics`. Drops `first` when the first valid
    /// settings are read.
    pub fn new(tx: watch::Sender<Arc<Rewriting>>, metrics: Arc<Metrics>, first: B) -> Self {
        Self {
            tx,
            metrics,
            first: Some(first),
            last: None,
            warned: false,
        }
    }

    /// Whether no valid settings have been read yet.
    fn is_waiting(&self) -> bool {
        self.first.is_some()
    }

    /// `place` has no settings. Initially the defaults apply; later the last good settings stay in use.
    fn missing(&mut self, place: &str) {
        if self.is_waiting() {
            self.read(place, Ok(Rewriting::default()));
        } else {
            self.warn(place, "there are no settings");
        }
    }

    /// The settings are temporarily unavailable, which does not make them invalid.
    fn out_of_sight(&mut self, place: &str, why: String) {
        if self.is_waiting() {
            self.read(place, Err(why));
        } else {
            self.warn(place, &why);
        }
    }

    /// Warns once until settings are read again.
    fn warn(&mut self, place: &str, why: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                place,
                why,
                "can't read the settings: the last good settings stay in use"
            );
        }
    }

    /// Handles the settings read from `place`.
    fn read(&mut self, place: &str, settings: Result<Rewriting, String>) {
        if std::mem::take(&mut self.warned) && settings.is_ok() {
            tracing::info!(place, "the settings can be read again");
        }
        if self.last.as_ref() == Some(&settings) {
            return;
        }
        self.metrics.settings_read(settings.is_ok());
        match &settings {
            Ok(settings) => {
                tracing::info!(place, ?settings, "applied settings");
                self.metrics.set_enabled(settings.enabled);
                let _ = self.tx.send_replace(Arc::new(settings.clone()));
                self.first = None;
            }
            Err(error) => {
                let meanwhile = match self.first {
                    Some(_) => "no pod is rewritten until there are valid settings",
                    None => "the last good settings stay in use",
                };
                tracing::error!(place, %error, meanwhile, "invalid settings");
            }
        }
        self.last = Some(settings);
    }
}

#[cfg(test)]
mod tests;
