//! TLS to an app as the kubelet's prober uses it: encrypted, without verification of the certificate.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, InvalidMessage, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate;
use super::limited::Limited;
use super::verdict::Reason;
use super::{Finding, WIRE_LIMIT};

/// A TLS connection.
pub(super) struct Secured {
    pub(super) stream: TlsStream<Limited<TcpStream>>,
    /// Whether the app chose HTTP/2.
    pub(super) http2: bool,
}

/// Why there is no TLS connection.
pub(super) enum Failure {
    /// The app seems to have answered in plaintext.
    Plaintext(Finding),
    /// Any other reason.
    Other(Finding),
}

impl Failure {
    pub(super) fn into_finding(self) -> Finding {
        match self {
            Self::Plaintext(finding) | Self::Other(finding) => finding,
        }
    }
}

impl From<Finding> for Failure {
    fn from(finding: Finding) -> Self {
        Self::Other(finding)
    }
}

/// Makes the TLS handshake over `stream` with the app at `ip`. Accepts any certificate, offers HTTP/2 before
/// HTTP/1.1, and sends no server name, because an IP address is none.
pub(super) async fn secure(stream: TcpStream, ip: IpAddr) -> Result<Secured, Failure> {
    let config =
        config().map_err(|error| Finding::without_answer(Reason::Tls, error.to_string()))?;
    let stream = TlsConnector::from(config)
        .connect(
            ServerName::IpAddress(ip.into()),
            Limited::new(stream, WIRE_LIMIT),
        )
        .await
        .map_err(|error| failed(&error))?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Secured { stream, http2 })
}

fn failed(error: &io::Error) -> Failure {
    let by_tls = error
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<rustls::Error>());
    let reason = match by_tls {
        Some(_) => Reason::Tls,
        None => Reason::ConnectionClosed,
    };
    let finding = Finding::without_answer(reason, format!("TLS handshake: {error}"));
    match by_tls {
        // The first byte is not the type of a TLS record.
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            Failure::Plaintext(finding)
        }
        _ => Failure::Other(finding),
    }
}

/// The shared configuration, created at first use.
fn config() -> Result<Arc<ClientConfig>, rustls::Error> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.enable_sni = false;
    // Each probe must make a full handshake, as a new client does.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

/// Accepts any certificate that Go does not refuse by itself: it may be of version 1, or expired.
#[derive(Debug)]
struct AcceptAny;

/// What Go's client offers (crypto/tls `defaultSupportedSignatureAlgorithms`; without SHA-1 since Go 1.25).
const SCHEMES: [SignatureScheme; 10] = [
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
];

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        for certificate in intermediates.iter().chain([end_entity]) {
            certificate::check(certificate)
                .map_err(|why| rustls::Error::General(why.to_owned()))?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}
