//! The content of the Secret, and the decisions about its changes, without I/O.
//!
//! A renewal takes two steps, so that no API server ever receives a certificate that it does not trust yet. First the
//! next certificate is issued, and its authority is added to the bundle that API servers trust, beside the previous
//! one. The next certificate is served only after the bundle has been in place for a while. The previous authority
//! stays in the bundle until it expires, so that a replica that still serves its certificate is trusted until then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::ByteString;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::{ServerName, UnixTime};

use super::authority::{Lifetimes, Made, make};
use super::pair::{self, Pair};

/// Keys of the Secret. The first three are the usual ones, used by cert-manager among others.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITIES: &str = "ca.crt";
const NEXT_CERTIFICATE: &str = "next-tls.crt";
const NEXT_KEY: &str = "next-tls.key";
/// Maximum number of authorities in the bundle. Two are usual; there are more if someone forces new certificates
/// repeatedly.
const AUTHORITIES_MAX: usize = 8;

/// A certificate and its key, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pem {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// The content of the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The certificate to serve.
    current: Pem,
    /// The certificate to serve next.
    next: Option<Pem>,
    /// The authorities that API servers must trust: certificates, newest first, as PEM.
    bundle: String,
}

/// The requirements for the certificate.
#[derive(Clone, Debug)]
pub struct Needs {
    /// The names that a certificate must be valid for; API servers use the first.
    pub names: Vec<String>,
    /// How long certificates are valid.
    pub lifetimes: Lifetimes,
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to change.
    Keep,
    /// Write this to the Secret.
    Write(Trust, WriteReason),
}

/// Why the Secret is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteReason {
    /// There was no usable certificate.
    Missing,
    /// The certificate expires soon, so the next one is added.
    Renewal,
    /// API servers trust the next certificate, so it becomes the current one.
    Turn,
    /// An authority has expired.
    Expired,
}

impl Trust {
    /// Reads a Secret's data; `None` if it lacks our keys, or can't be read.
    pub fn read(data: &BTreeMap<String, ByteString>) -> Option<Self> {
        let bytes = |key: &str| data.get(key).map(|bytes| bytes.0.clone());
        let pem = |certificate, key| {
            Some(Pem {
                certificate: bytes(certificate)?,
                key: bytes(key)?,
            })
        };
        Some(Self {
            current: pem(CERTIFICATE, KEY)?,
            next: pem(NEXT_CERTIFICATE, NEXT_KEY),
            bundle: String::from_utf8(bytes(AUTHORITIES)?).ok()?,
        })
    }

    /// Writes it to a Secret's data; other keys are unchanged.
    pub fn write(&self, data: &mut BTreeMap<String, ByteString>) {
        let mut set = |key: &str, bytes: Option<&[u8]>| match bytes {
            Some(bytes) => drop(data.insert(key.to_owned(), ByteString(bytes.to_vec()))),
            None => drop(data.remove(key)),
        };
        let next = self.next.as_ref();
        set(CERTIFICATE, Some(&self.current.certificate));
        set(KEY, Some(&self.current.key));
        set(AUTHORITIES, Some(self.bundle.as_bytes()));
        set(NEXT_CERTIFICATE, next.map(|next| &*next.certificate));
        set(NEXT_KEY, next.map(|next| &*next.key));
    }

    /// The authorities that API servers must trust, as PEM.
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// The pair to serve, if it is usable.
    pub fn serving(&self, needs: &Needs, now: SystemTime) -> Option<Pair> {
        usable(&self.current, &self.bundle, needs, now)
    }

    /// Content with a newly issued certificate, which also trusts the authorities of bundle `before`.
    fn made(made: Made, before: &str, now: SystemTime) -> Self {
        Self {
            current: Pem {
                certificate: made.certificate.into_bytes(),
                key: made.key.into_bytes(),
            },
            next: None,
            bundle: joined(&made.authority, before, now),
        }
    }

    /// This content with a newly issued next certificate.
    fn with_next(&self, made: Made, now: SystemTime) -> Self {
        let next = Self::made(made, &self.bundle, now);
        Self {
            current: self.current.clone(),
            next: Some(next.current),
            bundle: next.bundle,
        }
    }
}

/// The next step, given what is `stored` in the Secret, what this replica has `held` so far, and whether the bundle
/// is `settled`: API servers have had time to trust all of it.
///
/// # Errors
/// No certificate can be issued.
pub fn step(
    stored: Option<&Trust>,
    held: Option<&Trust>,
    settled: bool,
    needs: &Needs,
    now: SystemTime,
) -> Result<Step, rcgen::Error> {
    let make = || make(&needs.names, &needs.lifetimes, now);
    let Some(trust) = stored else {
        // Someone emptied the Secret to force a new certificate. Trust the one served meanwhile until it expires.
        return Ok(
            match held.filter(|held| held.serving(needs, now).is_some()) {
                Some(held) => Step::Write(held.with_next(make()?, now), WriteReason::Renewal),
                None => Step::Write(Trust::made(make()?, "", now), WriteReason::Missing),
            },
        );
    };
    let next = trust
        .next
        .as_ref()
        .filter(|next| usable(next, &trust.bundle, needs, now).is_some());
    let Some(serving) = trust.serving(needs, now) else {
        return Ok(match next {
            Some(next) => Step::Write(turned(trust, next), WriteReason::Turn),
            None => Step::Write(
                Trust::made(make()?, &trust.bundle, now),
                WriteReason::Missing,
            ),
        });
    };
    if let Some(next) = next {
        if settled {
            return Ok(Step::Write(turned(trust, next), WriteReason::Turn));
        }
    } else if trust.next.is_some() || serving.expiry() <= now + needs.lifetimes.renew_before {
        return Ok(Step::Write(
            trust.with_next(make()?, now),
            WriteReason::Renewal,
        ));
    }
    let bundle = joined("", &trust.bundle, now);
    if bundle == trust.bundle {
        return Ok(Step::Keep);
    }
    let pruned = Trust {
        bundle,
        ..trust.clone()
    };
    Ok(Step::Write(pruned, WriteReason::Expired))
}

fn turned(trust: &Trust, next: &Pem) -> Trust {
    Trust {
        current: next.clone(),
        next: None,
        bundle: trust.bundle.clone(),
    }
}

/// The pair, if clients that trust `bundle` accept it for our names at `now`.
fn usable(pem: &Pem, bundle: &str, needs: &Needs, now: SystemTime) -> Option<Pair> {
    let pair = Pair::from_pem(&pem.certificate, &pem.key, now).ok()?;
    let mut roots = RootCertStore::empty();
    let _ = roots.add_parsable_certificates(pair::certificates(bundle.as_bytes()).ok()?);
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .ok()?;
    let (leaf, intermediates) = pair.chain().split_first()?;
    let at = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).ok()?);
    for name in &needs.names {
        let name = ServerName::try_from(name.as_str()).ok()?;
        let verified = verifier.verify_server_cert(leaf, intermediates, &name, &[], at);
        let _ = verified.ok()?;
    }
    Some(pair)
}

/// The certificates of both texts, except those that have expired or can't be read.
fn joined(newer: &str, older: &str, now: SystemTime) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    let good = |pem: &&str| {
        let certificates = pair::certificates(pem.as_bytes()).unwrap_or_default();
        let mut expiries = certificates.iter().map(pair::expiry);
        expiries
            .next()
            .is_some_and(|expiry| expiry.is_ok_and(|at| at > now))
    };
    let mut all: Vec<&str> = Vec::new();
    for text in [newer, older] {
        all.extend(text.split_inclusive(END).filter(good).map(str::trim));
    }
    all.truncate(AUTHORITIES_MAX);
    all.into_iter()
        .fold(String::new(), |bundle, pem| bundle + pem + "\n")
}
