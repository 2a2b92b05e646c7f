//! A certificate with its key, read from PEM and checked.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// A certificate chain and the matching key.
#[derive(Clone, Debug)]
pub struct Pair {
    key: Arc<CertifiedKey>,
    expiry: SystemTime,
}

/// Why a pair can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The text is not PEM, or has no item of the right kind.
    #[error("{0}")]
    Pem(String),
    /// They do not match, or the key is of an unknown kind.
    #[error("certificate and key can't be used together: {0}")]
    Unfit(#[from] rustls::Error),
    /// The certificate can't be read.
    #[error("the certificate can't be read: {0}")]
    Unreadable(String),
    /// It has expired.
    #[error("the certificate has expired")]
    Expired,
}

impl Pair {
    /// The pair of a chain and a key, both PEM, that is valid at `now`.
    ///
    /// # Errors
    /// It can't be used.
    pub fn from_pem(chain: &[u8], key: &[u8], now: SystemTime) -> Result<Self, PairError> {
        let chain = certificates(chain).and_then(|chain| match chain.is_empty() {
            true => Err(rustls::pki_types::pem::Error::NoItemsFound),
            false => Ok(chain),
        });
        let key = PrivateKeyDer::from_pem_slice(key);
        let (chain, key) = match (chain, key) {
            (Ok(chain), Ok(key)) => (chain, key),
            (chain, key) => {
                let wrong = [("certificate", chain.err()), ("key", key.err())];
                let wrong: Vec<String> = wrong
                    .into_iter()
                    .filter_map(|(what, error)| Some(not_pem(what, &error?)))
                    .collect();
                return Err(PairError::Pem(wrong.join("; ")));
            }
        };
        let leaf = &chain[0];
        let expiry = expiry(leaf).map_err(PairError::Unreadable)?;
        if expiry <= now {
            return Err(PairError::Expired);
        }
        let key = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
        Ok(Self {
            key: Arc::new(key),
            expiry,
        })
    }

    /// For rustls.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.key)
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// When the leaf expires.
    pub fn expiry(&self) -> SystemTime {
        self.expiry
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.chain() == other.chain()
    }
}

/// All certificates in a PEM text.
///
/// # Errors
/// One of them can't be read.
pub fn certificates(
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
    CertificateDer::pem_slice_iter(pem).collect()
}

/// The message for an error in the PEM of a certificate or key (`what`).
fn not_pem(what: &str, error: &rustls::pki_types::pem::Error) -> String {
    match error {
        rustls::pki_types::pem::Error::NoItemsFound => format!("no PEM-encoded {what} found"),
        error => format!("{what}: {error}"),
    }
}

/// When a certificate expires.
///
/// # Errors
/// It is not an X.509 certificate.
pub fn expiry(certificate: &CertificateDer<'_>) -> Result<SystemTime, String> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}
