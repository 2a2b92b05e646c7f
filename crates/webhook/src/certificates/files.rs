//! The certificate from files that another program renews: for example cert-manager, through a mounted Secret.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::Serving;
use super::pair::{Pair, PairError};
use crate::metrics::Metrics;
use sources::directory::{Directory, consistently};

/// The certificate, followed by its intermediate certificates.
const CERTIFICATE: &str = "tls.crt";
/// Its key.
const KEY: &str = "tls.key";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file, or the directory, can't be read.
    #[error("{name}: {source}")]
    Read {
        /// Its name.
        name: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The pair can't be used.
    #[error(transparent)]
    Unusable(#[from] PairError),
}

/// The pair in `directory`.
///
/// # Errors
/// It does not exist, or can't be used.
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

/// Serves the certificate in `path` and its successors. Drops `first` when there is a certificate to serve.
/// Never returns.
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
                    tracing::info!(directory = %path.display(), "serving a new certificate");
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
                        Some(_) => "no connection is accepted until there is a valid certificate",
                        None => "the last good certificate is served",
                    };
                    tracing::error!(directory = %path.display(), error = %text, meanwhile, "this certificate can't be used");
                    trouble = Some(text);
                }
            }
        }
        directory.changed().await;
    }
}
