//! The server's signature in a handshake, verified with the certificate's key as by Go's client even if it does not verify
//! certificates (Go 1.26, crypto/tls/auth.go, `verifyHandshakeSignature`).
//!
//! The key is taken from the certificate here, because rustls' own function first parses the whole certificate, and refuses
//! some that Go accepts, such as those of version 1.

use rustls::SignatureScheme;
use rustls::crypto::WebPkiSupportedAlgorithms;

use super::{Fields, PublicKey, RSA, bits};

/// id-ecPublicKey, 1.2.840.10045.2.1, and Ed25519, 1.3.101.112.
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
/// The sizes of RSA keys that ring uses, and of their exponents. Bits.
const RING_MODULUS: std::ops::RangeInclusive<usize> = 2048..=8192;
const RING_EXPONENT: std::ops::RangeInclusive<usize> = 2..=33;

/// Verifies that `signature` of `message` was made with the key of `certificate`. A signature that ring can't verify counts
/// as valid, so that nothing fails that passes with Go: signatures by P-224 and P-521 keys, with SHA-512 by an EC key, and
/// by RSA keys under 2048 bits.
///
/// # Errors
/// Why it is wrong.
pub(crate) fn verify(
    supported: &WebPkiSupportedAlgorithms,
    certificate: &[u8],
    scheme: SignatureScheme,
    message: &[u8],
    signature: &[u8],
) -> Result<(), &'static str> {
    let Some(Fields { key, .. }) = Fields::of(certificate) else {
        return Err(super::MALFORMED);
    };
    if kind(scheme) != Some(key.kind) {
        return Err("the handshake was signed with another kind of key than the certificate's");
    }
    let mut able = supported
        .mapping
        .iter()
        .filter(|(mapped, _)| *mapped == scheme)
        .flat_map(|(_, algorithms)| *algorithms)
        .filter(|algorithm| algorithm.public_key_alg_id().as_ref() == key.algorithm)
        .filter(|_| is_usable(&key))
        .peekable();
    let right = able.peek().is_none()
        || able.any(|algorithm| {
            algorithm
                .verify_signature(key.bytes, message, signature)
                .is_ok()
        });
    match right {
        true => Ok(()),
        false => Err("the signature of the handshake is wrong"),
    }
}

/// Whether ring uses the key.
fn is_usable(key: &PublicKey<'_>) -> bool {
    let is_odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
    key.kind != RSA
        || key.rsa().is_some_and(|(modulus, exponent)| {
            RING_MODULUS.contains(&bits(modulus))
                && RING_EXPONENT.contains(&bits(exponent))
                && is_odd(modulus)
                && is_odd(exponent)
        })
}

/// OID of the keys that sign by `scheme`.
fn kind(scheme: SignatureScheme) -> Option<&'static [u8]> {
    Some(match scheme {
        SignatureScheme::RSA_PKCS1_SHA256
        | SignatureScheme::RSA_PKCS1_SHA384
        | SignatureScheme::RSA_PKCS1_SHA512
        | SignatureScheme::RSA_PSS_SHA256
        | SignatureScheme::RSA_PSS_SHA384
        | SignatureScheme::RSA_PSS_SHA512 => RSA,
        SignatureScheme::ECDSA_NISTP256_SHA256
        | SignatureScheme::ECDSA_NISTP384_SHA384
        | SignatureScheme::ECDSA_NISTP521_SHA512 => EC,
        SignatureScheme::ED25519 => ED25519,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use rustls::crypto::ring::default_provider;

    use super::super::tests::{certificate, modulus_of};
    use super::*;

    fn verified(bits: usize, scheme: SignatureScheme) -> Result<(), &'static str> {
        let supported = default_provider().signature_verification_algorithms;
        let certificate = certificate(&[1], &modulus_of(bits));
        verify(&supported, &certificate, scheme, b"message", b"signature")
    }

    #[test]
    fn only_what_ring_verifies_can_be_wrong() {
        for scheme in [
            SignatureScheme::RSA_PSS_SHA256,
            SignatureScheme::RSA_PKCS1_SHA512,
        ] {
            assert!(verified(2048, scheme).is_err());
            assert!(verified(8192, scheme).is_err());
            assert!(verified(1024, scheme).is_ok());
            assert!(verified(2047, scheme).is_ok());
        }
    }

    #[test]
    fn a_scheme_of_another_kind_of_key_is_refused() {
        for scheme in [
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ED25519,
            SignatureScheme::RSA_PKCS1_SHA1,
        ] {
            assert!(verified(1024, scheme).is_err(), "{scheme:?}");
        }
    }
}
