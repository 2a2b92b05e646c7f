//! Which certificates Go's client refuses even if it does not verify them, as the kubelet's does not: it parses each
//! certificate, and checks the size of the key (Go 1.26, crypto/x509/parser.go and crypto/tls/handshake_client.go,
//! `verifyServerCertificate`; crypto/rsa `checkKeySize`). Not all of its rules are here: see docs/limits.md.

mod names;
mod signature;

pub(crate) use signature::verify;

/// DER tags (X.690, 8.1.2).
const BOOLEAN: u8 = 1;
const INTEGER: u8 = 2;
const BIT_STRING: u8 = 3;
const OCTET_STRING: u8 = 4;
const OBJECT_IDENTIFIER: u8 = 6;
const SEQUENCE: u8 = 0x30;
/// The explicit tag of a certificate's version.
const VERSION: u8 = 0xa0;
/// The tags of issuer's and subject's unique ids, and of the extensions.
const UNIQUE_IDS: [u8; 2] = [0x81, 0x82];
const EXTENSIONS: u8 = 0xa3;
/// Version 3, the only one with extensions.
const VERSION_3: &[u8] = &[2];
/// subjectAltName, 2.5.29.17.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 29, 17];
/// rsaEncryption, 1.2.840.113549.1.1.1.
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
/// Sizes of RSA keys that Go accepts. Bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 1024..=8192;

const MALFORMED: &str = "malformed certificate";

/// Tag and value at the beginning of `der`. Leaves what follows them in `der`.
fn take_any<'a>(der: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=127 => (usize::from(first), rest),
        // Up to three bytes of length.
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let number = |number, &byte: &u8| number << 8 | usize::from(byte);
            (length.iter().fold(0, number), rest)
        }
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(length)?;
    *der = rest;
    Some((tag, value))
}

/// The value at the beginning of `der`, which must have this tag. Leaves what follows it in `der`.
fn take<'a>(der: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let mut rest = *der;
    let (found, value) = take_any(&mut rest)?;
    if found != tag {
        return None;
    }
    *der = rest;
    Some(value)
}

/// Like [`take`], but the value may be missing.
fn take_optional<'a>(der: &mut &'a [u8], tag: u8) -> Option<Option<&'a [u8]>> {
    match der.first() {
        Some(&first) if first == tag => take(der, tag).map(Some),
        _ => Some(None),
    }
}

/// Whether Go accepts this certificate, as far as it is checked here.
///
/// # Errors
/// Why Go refuses it.
pub(crate) fn check(certificate: &[u8]) -> Result<(), &'static str> {
    let fields = Fields::of(certificate).ok_or(MALFORMED)?;
    if fields.serial.first().is_none_or(|&first| first >= 128) {
        return Err("negative serial number in the certificate");
    }
    if fields.key.kind == RSA {
        let (modulus, _) = fields.key.rsa().ok_or(MALFORMED)?;
        if !RSA_BITS.contains(&bits(modulus)) {
            return Err("RSA key of the certificate under 1024 or over 8192 bits");
        }
    }
    check_extensions(fields.extensions)
}

/// The fields of a certificate that are checked (RFC 5280, 4.1).
struct Fields<'a> {
    serial: &'a [u8],
    key: PublicKey<'a>,
    /// Empty if there are none.
    extensions: &'a [u8],
}

/// A SubjectPublicKeyInfo (RFC 5280, 4.1.2.7).
struct PublicKey<'a> {
    /// OID and parameters of the algorithm.
    algorithm: &'a [u8],
    /// OID of the algorithm.
    kind: &'a [u8],
    /// The key, without the number of unused bits.
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    fn of(mut certificate: &'a [u8]) -> Option<Self> {
        let mut certificate = take(&mut certificate, SEQUENCE)?;
        let mut signed = take(&mut certificate, SEQUENCE)?;
        let version = take_optional(&mut signed, VERSION)?;
        let serial = take(&mut signed, INTEGER)?;
        // Signature algorithm, issuer, validity, subject.
        for _ in 0..4 {
            let _ignored = take(&mut signed, SEQUENCE)?;
        }
        let key = PublicKey::of(take(&mut signed, SEQUENCE)?)?;
        let mut extensions = [].as_slice();
        let has_extensions =
            version.is_some_and(|mut version| take(&mut version, INTEGER) == Some(VERSION_3));
        if has_extensions {
            for tag in UNIQUE_IDS {
                let _ignored = take_optional(&mut signed, tag)?;
            }
            if let Some(mut list) = take_optional(&mut signed, EXTENSIONS)? {
                extensions = take(&mut list, SEQUENCE)?;
            }
        }
        Some(Self {
            serial,
            key,
            extensions,
        })
    }
}

impl<'a> PublicKey<'a> {
    fn of(mut key: &'a [u8]) -> Option<Self> {
        let algorithm = take(&mut key, SEQUENCE)?;
        let kind = take(&mut &*algorithm, OBJECT_IDENTIFIER)?;
        let bytes = take(&mut key, BIT_STRING)?;
        Some(Self {
            algorithm,
            kind,
            bytes: bytes.strip_prefix(&[0]).unwrap_or_default(),
        })
    }

    /// Modulus and exponent of an RSA key (RFC 8017, A.1.1), without leading zeros.
    fn rsa(&self) -> Option<(&'a [u8], &'a [u8])> {
        let mut bytes = self.bytes;
        let mut numbers = take(&mut bytes, SEQUENCE)?;
        let mut number = || {
            let number = take(&mut numbers, INTEGER)?;
            Some(number.strip_prefix(&[0]).unwrap_or(number))
        };
        Some((number()?, number()?))
    }
}

/// The length of an unsigned number. Bits.
fn bits(number: &[u8]) -> usize {
    match number {
        [] => 0,
        [first, rest @ ..] => 8 * rest.len() + (8 - first.leading_zeros() as usize),
    }
}

/// Checks extensions as Go's parser does: none may occur twice, and the names of the subject must be valid.
fn check_extensions(mut extensions: &[u8]) -> Result<(), &'static str> {
    let mut seen = Vec::new();
    while !extensions.is_empty() {
        let (id, value) = extension(&mut extensions).ok_or(MALFORMED)?;
        if seen.contains(&id) {
            return Err("the certificate contains an extension twice");
        }
        seen.push(id);
        if id == SUBJECT_ALT_NAME {
            names::check(value)?;
        }
    }
    Ok(())
}

/// OID and value of the first of `extensions`.
fn extension<'a>(extensions: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let mut extension = take(extensions, SEQUENCE)?;
    let id = take(&mut extension, OBJECT_IDENTIFIER)?;
    let _critical = take_optional(&mut extension, BOOLEAN)?;
    Some((id, take(&mut extension, OCTET_STRING)?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(super) fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let value = parts.concat();
        let length = u16::try_from(value.len()).expect("length").to_be_bytes();
        [&[tag, 130], length.as_slice(), &value].concat()
    }

    /// A certificate with this serial number and an RSA key with this modulus.
    pub(super) fn certificate(serial: &[u8], modulus: &[u8]) -> Vec<u8> {
        extended(serial, modulus, &[])
    }

    /// An extension.
    pub(super) fn extension(id: &[u8], value: &[u8]) -> Vec<u8> {
        der(
            SEQUENCE,
            &[&der(OBJECT_IDENTIFIER, &[id]), &der(OCTET_STRING, &[value])],
        )
    }

    /// Like [`certificate`], with these extensions.
    pub(super) fn extended(serial: &[u8], modulus: &[u8], extensions: &[&[u8]]) -> Vec<u8> {
        let empty = der(SEQUENCE, &[]);
        let numbers = der(
            SEQUENCE,
            &[&der(INTEGER, &[modulus]), &der(INTEGER, &[&[1, 0, 1]])],
        );
        // This is compared byte for byte with ring's encoding, so it must be in its shortest form.
        let algorithm = der(SEQUENCE, &[&[OBJECT_IDENTIFIER, 9], RSA, &[5, 0]]);
        let key = der(SEQUENCE, &[&algorithm, &der(BIT_STRING, &[&[0], &numbers])]);
        let version = der(VERSION, &[&der(INTEGER, &[&[2]])]);
        let serial = der(INTEGER, &[serial]);
        let signed = der(
            SEQUENCE,
            &[
                &version,
                &serial,
                &empty,
                &empty,
                &empty,
                &empty,
                &key,
                &der(EXTENSIONS, &[&der(SEQUENCE, extensions)]),
            ],
        );
        der(SEQUENCE, &[&signed])
    }

    pub(super) fn modulus_of(bits: usize) -> Vec<u8> {
        let mut modulus = vec![0xff; bits / 8];
        if !bits.is_multiple_of(8) {
            modulus.insert(0, (1 << (bits % 8)) - 1);
        } else {
            modulus.insert(0, 0);
        }
        modulus
    }

    #[test]
    fn rsa_keys_of_other_sizes_than_go_accepts_are_refused() {
        for (bits, accepted) in [
            (512, false),
            (1023, false),
            (1024, true),
            (2048, true),
            (8192, true),
            (8193, false),
        ] {
            let checked = check(&certificate(&[1], &modulus_of(bits)));
            assert_eq!(checked.is_ok(), accepted, "{bits} bits: {checked:?}");
        }
    }

    #[test]
    fn a_negative_serial_number_is_refused() {
        let modulus = modulus_of(2048);
        for (serial, accepted) in [
            (&[0][..], true),
            (&[0, 0x80], true),
            (&[0x80], false),
            (&[], false),
        ] {
            let checked = check(&certificate(serial, &modulus));
            assert_eq!(checked.is_ok(), accepted, "{serial:?}: {checked:?}");
        }
    }

    #[test]
    fn an_extension_that_is_there_twice_is_refused() {
        let [one, other] = [[0x55, 29, 14], [0x55, 29, 15]].map(|id| extension(&id, &[4, 0]));
        let modulus = modulus_of(2048);
        for (extensions, accepted) in [
            (&[&*one][..], true),
            (&[&one, &other], true),
            (&[&one, &other, &one], false),
            (&[&one[1..]], false),
        ] {
            let checked = check(&extended(&[1], &modulus, extensions));
            assert_eq!(checked.is_ok(), accepted, "{checked:?}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused_without_a_panic() {
        let whole = certificate(&[1], &modulus_of(2048));
        for end in 0..whole.len() {
            assert!(check(&whole[..end]).is_err(), "{end} bytes");
        }
        proptest::proptest!(|(bytes: Vec<u8>)| {
            let _checked = check(&bytes);
        });
    }
}
