//! Issues certificates: each has its own authority, whose key is discarded after one signature. No stored key can
//! be stolen and used to issue another certificate.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// How long certificates are valid, and when the next one is issued.
#[derive(Clone, Debug)]
pub struct Lifetimes {
    /// Time from issuing a certificate to its expiry.
    pub validity: Duration,
    /// How long before its expiry the next one is issued.
    pub renew_before: Duration,
    /// How long before its issue a certificate is already valid, because some clocks are slow.
    pub skew: Duration,
    /// How long the caBundle must contain an authority before its certificate is served.
    pub settle: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            validity: 90 * DAY,
            renew_before: 30 * DAY,
            skew: Duration::from_secs(60 * 60),
            settle: Duration::from_secs(60),
        }
    }
}

/// A new certificate, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The authority's certificate.
    pub authority: String,
    /// The certificate that it signed.
    pub certificate: String,
    /// The key of that certificate.
    pub key: String,
}

/// Issues a certificate for a server with these DNS `names`.
///
/// # Errors
/// A name is invalid, or random numbers are not available.
pub fn make(
    names: &[String],
    lifetimes: &Lifetimes,
    now: SystemTime,
) -> Result<Made, rcgen::Error> {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Certificates contain whole seconds.
    let now = UNIX_EPOCH + Duration::from_secs(seconds);
    let params = |names: &[String], name: String| -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::new(names)?;
        params.not_before = (now - lifetimes.skew).into();
        params.not_after = (now + lifetimes.validity).into();
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(params)
    };

    let mut authority = params(&[], format!("probe-handler webhook CA {seconds}"))?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

    let mut serving = params(names, names.first().cloned().unwrap_or_default())?;
    serving.use_authority_key_identifier_extension = true;
    serving.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    serving.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = serving.signed_by(&key, &authority)?;
    Ok(Made {
        authority: authority.pem(),
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}
