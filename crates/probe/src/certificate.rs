//! Which certificates Go's client refuses even if it does not verify them, as the kubelet's does not: it parses each
//! certificate, and checks the size of the key (Go 1.26, crypto/x509/parser.go and crypto/tls/handshake_client.go,
//! `verifyServerCertificate`; crypto/rsa `checkKeySize`). Not all of its rules are here: see docs/limits.md.

/// DER tags (X.690, 8.1.2).
const INTEGER: u8 = 2;
const BIT_STRING: u8 = 3;
const OBJECT_IDENTIFIER: u8 = 6;
const SEQUENCE: u8 = 0x30;
/// The explicit tag of a certificate's version.
const VERSION: u8 = 0xa0;
/// rsaEncryption, 1.2.840.113549.1.1.1.
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
/// Sizes of RSA keys that Go accepts. Bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 1024..=8192;

const MALFORMED: &str = "malformed certificate";

/// The value at the beginning of `der`, which must have this tag. Leaves what follows it in `der`.
fn take<'a>(der: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (&first, rest) = der.strip_prefix(&[tag])?.split_first()?;
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
    Some(value)
}

/// Whether Go accepts this certificate, as far as it is checked here.
///
/// # Errors
/// Why Go refuses it.
pub(crate) fn check(certificate: &[u8]) -> Result<(), &'static str> {
    let (serial, algorithm, key) = fields(certificate).ok_or(MALFORMED)?;
    if serial.first().is_none_or(|&first| first >= 128) {
        return Err("negative serial number in the certificate");
    }
    if algorithm == RSA {
        let modulus = modulus(key).ok_or(MALFORMED)?;
        let bits = match modulus {
            [] => 0,
            [first, rest @ ..] => 8 * rest.len() + (8 - first.leading_zeros() as usize),
        };
        if !RSA_BITS.contains(&bits) {
            return Err("RSA key of the certificate under 1024 or over 8192 bits");
        }
    }
    Ok(())
}

/// Serial number, algorithm of the key, and key (RFC 5280, 4.1).
fn fields(mut certificate: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let mut certificate = take(&mut certificate, SEQUENCE)?;
    let mut signed = take(&mut certificate, SEQUENCE)?;
    if signed.first() == Some(&VERSION) {
        let _version = take(&mut signed, VERSION)?;
    }
    let serial = take(&mut signed, INTEGER)?;
    // Signature algorithm, issuer, validity, subject.
    for _ in 0..4 {
        let _ignored = take(&mut signed, SEQUENCE)?;
    }
    let mut key = take(&mut signed, SEQUENCE)?;
    let mut algorithm = take(&mut key, SEQUENCE)?;
    Some((
        serial,
        take(&mut algorithm, OBJECT_IDENTIFIER)?,
        take(&mut key, BIT_STRING)?,
    ))
}

/// The modulus of an RSA key (RFC 8017, A.1.1), without leading zeros.
fn modulus(key: &[u8]) -> Option<&[u8]> {
    // No unused bits.
    let mut key = key.strip_prefix(&[0])?;
    let mut numbers = take(&mut key, SEQUENCE)?;
    let modulus = take(&mut numbers, INTEGER)?;
    Some(modulus.strip_prefix(&[0]).unwrap_or(modulus))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let value = parts.concat();
        let length = u16::try_from(value.len()).expect("length").to_be_bytes();
        [&[tag, 130], length.as_slice(), &value].concat()
    }

    /// A certificate with this serial number and an RSA key with this modulus.
    fn certificate(serial: &[u8], modulus: &[u8]) -> Vec<u8> {
        let empty = der(SEQUENCE, &[]);
        let numbers = der(
            SEQUENCE,
            &[&der(INTEGER, &[modulus]), &der(INTEGER, &[&[1, 0, 1]])],
        );
        let algorithm = der(SEQUENCE, &[&der(OBJECT_IDENTIFIER, &[RSA])]);
        let key = der(SEQUENCE, &[&algorithm, &der(BIT_STRING, &[&[0], &numbers])]);
        let version = der(VERSION, &[&der(INTEGER, &[&[2]])]);
        let serial = der(INTEGER, &[serial]);
        let signed = der(
            SEQUENCE,
            &[&version, &serial, &empty, &empty, &empty, &empty, &key],
        );
        der(SEQUENCE, &[&signed])
    }

    fn modulus_of(bits: usize) -> Vec<u8> {
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
