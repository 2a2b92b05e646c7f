//! The mesh's certificates, and a client in the mesh.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::pace;
use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};

/// The name of every sidecar.
pub(crate) const SERVER_NAME: &str = "sidecar.testbed";
const PATIENCE: Duration = Duration::from_secs(5);

/// A certificate authority, a certificate for all sidecars and one for clients, in PEM files that all
/// processes of the run read.
#[derive(Clone, Debug)]
pub struct Identity {
    dir: PathBuf,
}

impl Identity {
    /// Creates new certificates in `dir`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn create(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(dir.join("ca.pem"), authority.pem())?;
        for name in ["server", "client"] {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
            // A certificate whose name is its issuer's counts as self-signed in OpenSSL and BoringSSL.
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.signed_by(&key, &authority)?;
            fs::write(dir.join(format!("{name}.pem")), certificate.pem())?;
            fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
        }
        Ok(Self { dir })
    }

    /// The directory of the files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Certificates that another process has created.
    pub const fn existing(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// A copy whose clients trust the servers of another mesh, which does not trust them.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn trusting(&self, other: &Self) -> Result<Self> {
        let dir = self.dir.join("trusting");
        fs::create_dir_all(&dir)?;
        for (from, file) in [
            (other, "ca.pem"),
            (self, "client.pem"),
            (self, "client.key"),
        ] {
            let _bytes = fs::copy(from.dir.join(file), dir.join(file))?;
        }
        Ok(Self { dir })
    }

    /// A sidecar's TLS: accepts only clients with a certificate of this mesh, as in STRICT mode.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn server_config(&self) -> Result<ServerConfig> {
        let provider = Arc::new(default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider.clone())
                .build()?;
        let (chain, key) = self.pair("server")?;
        Ok(ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)?)
    }

    /// Sends `request` as a client in the mesh: with mutual TLS to `ip:port`, which the pod's rules redirect to
    /// its sidecar. Returns the app's answer up to the end of the connection.
    ///
    /// # Errors
    /// When the sidecar refuses, or the app does not answer within 5 s.
    pub fn request(&self, ip: IpAddr, port: u16, request: &str) -> Result<String> {
        let (chain, key) = self.pair("client")?;
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)?;
        let name = ServerName::try_from(SERVER_NAME)?;
        let connection = ClientConnection::new(Arc::new(config), name)?;
        let socket =
            TcpStream::connect_timeout(&SocketAddr::new(ip, port), pace::stretch(PATIENCE))?;
        socket.set_read_timeout(Some(pace::stretch(PATIENCE)))?;
        let mut stream = StreamOwned::new(connection, socket);
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .context("reading the app's answer")?;
        Ok(answer)
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.dir.join("ca.pem"))?)?;
        Ok(roots)
    }

    fn pair(&self, name: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        Ok((
            vec![CertificateDer::from_pem_file(
                self.dir.join(format!("{name}.pem")),
            )?],
            PrivateKeyDer::from_pem_file(self.dir.join(format!("{name}.key")))?,
        ))
    }
}
