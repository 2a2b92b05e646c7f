//! A certificate with its key, as PEM and checked.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// A chain and its key, which fit.
#[derive(Clone, Debug)]
pub struct Pair {
    key: Arc<CertifiedKey>,
    expiry: SystemTime,
}

/// Why a pair can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// No PEM, or none of the right kind.
    #[error("{what}: {reason}")]
    Pem {
        /// `certificate` or `key`.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// They do not belong together, or the key is of an unknown kind.
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
    /// The pair of a chain and a key, both PEM, that is good at `now`.
    ///
    /// # Errors
    /// It can't be used.
    pub fn from_pem(chain: &[u8], key: &[u8], now: SystemTime) -> Result<Self, PairError> {
        let wrong = |what: &'static str| {
            move |error: rustls::pki_types::pem::Error| PairError::Pem {
                what,
                reason: error.to_string(),
            }
        };
        let chain = certificates(chain).map_err(wrong("certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(wrong("key"))?;
        let Some(leaf) = chain.first() else {
            return Err(PairError::Pem {
                what: "certificate",
                reason: "there is none in it".to_owned(),
            });
        };
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

/// When a certificate expires.
///
/// # Errors
/// It is no X.509 certificate.
pub fn expiry(certificate: &CertificateDer<'_>) -> Result<SystemTime, String> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}
