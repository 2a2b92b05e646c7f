//! Certificates of every kind that apps use. The kubelet accepts all, because it does not verify certificates.

use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;

/// A kind of certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Certificate {
    /// Self-signed, elliptic curve.
    SelfSigned,
    /// Like [`Certificate::SelfSigned`], but expired in 2020.
    Expired,
    /// Self-signed, RSA 2048.
    Rsa,
    /// X.509 version 1, which common libraries refuse to parse.
    Version1,
}

impl Certificate {
    /// All of them.
    pub const fn all() -> &'static [Self] {
        &[Self::SelfSigned, Self::Expired, Self::Rsa, Self::Version1]
    }
}

/// A TLS server with this certificate.
///
/// # Errors
/// When the certificate cannot be made.
pub(super) fn acceptor(kind: Certificate, h2: bool) -> Result<TlsAcceptor> {
    let (chain, key) = match kind {
        Certificate::SelfSigned => generated(2020, 2120)?,
        Certificate::Expired => generated(2010, 2020)?,
        Certificate::Rsa => committed(
            include_bytes!("certificates/rsa.crt"),
            include_bytes!("certificates/rsa.key"),
        )?,
        Certificate::Version1 => committed(
            include_bytes!("certificates/v1.crt"),
            include_bytes!("certificates/v1.key"),
        )?,
    };
    let provider = Arc::new(default_provider());
    let key = provider.key_provider.load_private_key(key)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Always(Arc::new(CertifiedKey::new(
            vec![chain],
            key,
        )))));
    config.alpn_protocols = match h2 {
        true => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        false => vec![b"http/1.1".to_vec()],
    };
    Ok(TlsAcceptor::from(Arc::new(config)))
}

type Pair = (CertificateDer<'static>, PrivateKeyDer<'static>);

fn generated(from: i32, until: i32) -> Result<Pair> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec!["app.testbed".to_owned()])?;
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    let certificate = params.self_signed(&key)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok((certificate.der().clone(), key.into()))
}

/// rcgen can create neither RSA keys nor version 1, so these two were created with openssl.
fn committed(certificate: &[u8], key: &[u8]) -> Result<Pair> {
    Ok((
        CertificateDer::from_pem_slice(certificate).context("a committed certificate")?,
        PrivateKeyDer::from_pem_slice(key).context("a committed key")?,
    ))
}

/// rustls' own resolver parses the certificate first, and fails for version 1.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}
