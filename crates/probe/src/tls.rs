//! TLS to an app as the kubelet's prober uses it: encrypted, without verification of the certificate.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, InvalidMessage, PeerMisbehaved, SignatureScheme,
};
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
/// HTTP/1.1, and sends no server name, because a server name can't be an IP address.
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
    let provider = ring::default_provider();
    let verifier = AcceptAny(provider.signature_verification_algorithms);
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.enable_sni = false;
    // Each probe must make a full handshake, as a new client does.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

/// Accepts any certificate that Go's parser accepts, for example one of version 1 or an expired one. The handshake must
/// be signed with its key.
#[derive(Debug)]
struct AcceptAny(WebPkiSupportedAlgorithms);

impl AcceptAny {
    fn verify(
        &self,
        message: &[u8],
        certificate: &[u8],
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let (scheme, signature) = (signed.scheme, signed.signature());
        if !SCHEMES.contains(&scheme) {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        certificate::verify(&self.0, certificate, scheme, message, signature)
            .map_err(|why| rustls::Error::General(why.to_owned()))?;
        Ok(HandshakeSignatureValid::assertion())
    }
}

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

/// What TLS 1.3 does not allow in a handshake (RFC 8446, 4.2.3).
const NOT_IN_TLS13: [SignatureScheme; 3] = [
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if NOT_IN_TLS13.contains(&signed.scheme) {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        self.verify(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::CryptoProvider;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::{CertifiedKey, Signer, SigningKey};
    use rustls::version::{TLS12, TLS13};
    use rustls::{
        ClientConnection, Connection, ServerConfig, ServerConnection, SignatureAlgorithm,
        SupportedProtocolVersion,
    };

    use super::*;

    /// A key that signs wrongly, if `wrong`.
    #[derive(Debug)]
    struct Key {
        right: Arc<dyn SigningKey>,
        wrong: bool,
    }

    #[derive(Debug)]
    struct Signing(Box<dyn Signer>, bool);

    impl SigningKey for Key {
        fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
            let signer = self.right.choose_scheme(offered)?;
            Some(Box::new(Signing(signer, self.wrong)))
        }

        fn algorithm(&self) -> SignatureAlgorithm {
            self.right.algorithm()
        }
    }

    impl Signer for Signing {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
            match self.1 {
                true => self.0.sign(&[message, b"!"].concat()),
                false => self.0.sign(message),
            }
        }

        fn scheme(&self) -> SignatureScheme {
            self.0.scheme()
        }
    }

    #[derive(Debug)]
    struct Always(Arc<CertifiedKey>);

    impl ResolvesServerCert for Always {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    type Pair = (CertificateDer<'static>, PrivateKeyDer<'static>);

    /// Certificates with keys of each kind.
    fn pairs() -> Vec<(&'static str, Pair)> {
        let generated = |algorithm| {
            let key = rcgen::KeyPair::generate_for(algorithm).expect("a key");
            let params = rcgen::CertificateParams::new(vec!["app".to_owned()]).expect("params");
            let certificate = params.self_signed(&key).expect("a certificate");
            let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
            (certificate.der().clone(), key)
        };
        let version1 = (
            include_bytes!("../../serve/src/tests/fixtures/rsa-v1.cert.der").to_vec(),
            include_bytes!("../../serve/src/tests/fixtures/rsa-v1.key.der").to_vec(),
        );
        vec![
            ("P-256", generated(&rcgen::PKCS_ECDSA_P256_SHA256)),
            ("P-384", generated(&rcgen::PKCS_ECDSA_P384_SHA384)),
            ("Ed25519", generated(&rcgen::PKCS_ED25519)),
            (
                "RSA, version 1",
                (
                    version1.0.into(),
                    PrivateKeyDer::try_from(version1.1).expect("a key"),
                ),
            ),
        ]
    }

    fn server(
        (certificate, key): Pair,
        wrong: bool,
        version: &'static SupportedProtocolVersion,
    ) -> ServerConnection {
        let provider: CryptoProvider = ring::default_provider();
        let right = provider.key_provider.load_private_key(key).expect("a key");
        let key = Arc::new(Key { right, wrong });
        let certified = CertifiedKey::new(vec![certificate], key);
        let config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Always(Arc::new(certified))));
        ServerConnection::new(Arc::new(config)).expect("a server")
    }

    /// Handshakes until both ends are done; the client's error.
    fn handshake(server: ServerConnection) -> Result<(), rustls::Error> {
        let name = ServerName::IpAddress(IpAddr::from([10, 0, 0, 7]).into());
        let client = ClientConnection::new(config().expect("a configuration"), name);
        let mut ends = [
            Connection::Client(client.expect("a client")),
            Connection::Server(server),
        ];
        while ends.iter().any(|end| end.is_handshaking()) {
            for (from, to) in [(0, 1), (1, 0)] {
                let mut bytes = Vec::new();
                while ends[from].wants_write() {
                    let _ = ends[from].write_tls(&mut bytes).expect("bytes");
                }
                let mut bytes = bytes.as_slice();
                while !bytes.is_empty() {
                    let _ = ends[to].read_tls(&mut bytes).expect("bytes");
                    let processed = ends[to].process_new_packets();
                    if to == 0 {
                        let _ = processed?;
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn the_handshake_must_be_signed_by_the_key_of_the_certificate() {
        for version in [&TLS12, &TLS13] {
            for (name, pair) in pairs() {
                let name = format!("{name}, {:?}", version.version);
                let right = (pair.0.clone(), pair.1.clone_key());
                assert_eq!(handshake(server(right, false, version)), Ok(()), "{name}");
                let error = handshake(server(pair, true, version)).expect_err(&name);
                assert!(error.to_string().contains("wrong"), "{name}: {error}");
            }
        }
    }
}
