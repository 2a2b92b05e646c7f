//! The settings that hold for all pods: the keys of a ConfigMap, watched in the API server or mounted as files.
//!
//! A key that is not there has its default; what can't be read leaves everything as it was: a slip of the pen in
//! a ConfigMap neither turns rewriting on nor off.

pub mod config_map;
pub mod files;

use std::io;
use std::sync::Arc;

use tokio::sync::watch;

use super::Rewriting;
use super::metrics::Metrics;
use pods::probers::parse_bool;

/// Whether probes are rewritten where the pod does not say: the name that Istio gives it
/// (`sidecarInjectorWebhook.rewriteAppHTTPProbe`).
pub const ENABLED: &str = "rewriteAppHTTPProbe";
/// The port that probes are rewritten to.
pub const PORT: &str = "rewritePort";
/// What stands before `/app-health/...`.
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
        /// What the system says.
        source: io::Error,
    },
    /// A value is wrong.
    #[error("{key} = {value:?}: {remedy}")]
    InvalidValue {
        /// Its name.
        key: &'static str,
        /// As it is.
        value: String,
        /// What to give instead.
        remedy: String,
    },
}

/// The settings, of which `value` gives the text of each key; none if there is none.
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
            let remedy = "give true or false";
            SettingsError::wrong(ENABLED, &text, remedy)
        })?;
    }
    if let Some(text) = value(PORT)? {
        settings.port = text
            .parse()
            .map_err(|_| SettingsError::wrong(PORT, &text, "give a port, 1 to 65535"))?;
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

/// Where the settings go that hold.
pub struct Holder<B> {
    tx: watch::Sender<Arc<Rewriting>>,
    metrics: Arc<Metrics>,
    /// Dropped with the first good ones.
    first: Option<B>,
    told: Option<Result<Rewriting, String>>,
    /// Whether the log says that nothing can be read.
    warned: bool,
}

impl<B> Holder<B> {
    /// Tells `tx` what holds, and counts in `metrics` what was read. `first` is dropped with the first good ones.
    pub fn new(tx: watch::Sender<Arc<Rewriting>>, metrics: Arc<Metrics>, first: B) -> Self {
        Self {
            tx,
            metrics,
            first: Some(first),
            told: None,
            warned: false,
        }
    }

    /// Whether there have been no good settings yet.
    fn is_waiting(&self) -> bool {
        self.first.is_some()
    }

    /// There are no settings in `place` any more, or not yet: the defaults hold, or those that held last.
    fn missing(&mut self, place: &str) {
        if self.is_waiting() {
            self.read(place, Ok(Rewriting::default()));
        } else {
            self.warn(place, "there are none");
        }
    }

    /// They can't be read just now, which says nothing of what they are.
    fn out_of_sight(&mut self, place: &str, why: String) {
        if self.is_waiting() {
            self.read(place, Err(why));
        } else {
            self.warn(place, &why);
        }
    }

    /// Said once, until something has been read again.
    fn warn(&mut self, place: &str, why: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(place, why, "settings: the last good ones hold");
        }
    }

    /// What has been read, in `place`.
    fn read(&mut self, place: &str, settings: Result<Rewriting, String>) {
        if std::mem::take(&mut self.warned) && settings.is_ok() {
            tracing::info!(place, "settings: they can be read again");
        }
        if self.told.as_ref() == Some(&settings) {
            return;
        }
        self.metrics.settings_read(settings.is_ok());
        match &settings {
            Ok(settings) => {
                tracing::info!(place, ?settings, "settings");
                self.metrics.set_enabled(settings.enabled);
                let _ = self.tx.send_replace(Arc::new(settings.clone()));
                self.first = None;
            }
            Err(error) => {
                let meanwhile = match self.first {
                    Some(_) => "no pod is rewritten before they can",
                    None => "the last good ones hold",
                };
                tracing::error!(place, %error, meanwhile, "these settings can't be used");
            }
        }
        self.told = Some(settings);
    }
}

#[cfg(test)]
mod tests;
