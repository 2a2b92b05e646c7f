//! The certificate from files that somebody else renews: cert-manager, say, by way of a mounted Secret.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::Serving;
use super::pair::{Pair, PairError};
use crate::directory::{Directory, consistently};
use crate::metrics::Metrics;

/// The certificate, with those that lead to its authority after it.
const CERTIFICATE: &str = "tls.crt";
/// Its key.
const KEY: &str = "tls.key";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file, or the directory, can't be read.
    #[error("{name}: {source}")]
    Read {
        /// Which.
        name: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// They can't be used.
    #[error(transparent)]
    Unusable(#[from] PairError),
}

/// The pair in `directory`.
///
/// # Errors
/// It is not there, or can't be used.
pub fn read(directory: &Path) -> Result<Pair, FilesError> {
    let load = |files: &Path| {
        let read =
            |name| fs::read(files.join(name)).map_err(|source| FilesError::Read { name, source });
        let pair = Pair::from_pem(&read(CERTIFICATE)?, &read(KEY)?, SystemTime::now())?;
        Ok(pair)
    };
    consistently(directory, load).map_err(|source| FilesError::Read {
        name: "the directory",
        source,
    })?
}

/// Serves what is in `path`, and what comes there after that. `first` is dropped when there is something to
/// serve. Never ends.
pub async fn follow<B>(path: PathBuf, serving: Arc<Serving>, metrics: Arc<Metrics>, first: B) {
    let mut first = Some(first);
    let mut directory = Directory::new(path.clone());
    let mut served: Option<Pair> = None;
    let mut trouble: Option<String> = None;
    loop {
        match read(&path) {
            Ok(pair) => {
                if served.as_ref() != Some(&pair) {
                    serving.install(&pair);
                    metrics.certificate(Some(pair.expiry()));
                    tracing::info!(directory = ?path, "serving a new certificate");
                    served = Some(pair);
                    first = None;
                }
                trouble = None;
            }
            Err(error) => {
                let text = error.to_string();
                if trouble.as_ref() != Some(&text) {
                    metrics.certificate(None);
                    let meanwhile = match first {
                        Some(_) => "no connection is accepted before it can",
                        None => "the last good one is served",
                    };
                    tracing::error!(directory = ?path, error = %text, meanwhile, "this certificate can't be used");
                    trouble = Some(text);
                }
            }
        }
        directory.changed().await;
    }
}
