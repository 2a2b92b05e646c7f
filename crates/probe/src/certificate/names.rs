//! Checks subject alternative names as Go's parser does (Go 1.26, crypto/x509/parser.go, `parseSANExtension`).

use super::{SEQUENCE, take, take_any};
use crate::go_url::Url;

/// Tags of names (RFC 5280, 4.2.1.6): context-specific, primitive.
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const IP: u8 = 0x87;
/// A tag of more than one byte, which Go's parser does not read.
const LONG_TAG: u8 = 0x1f;

const MALFORMED: &str = "malformed subject alternative name in the certificate";

/// Whether Go accepts these names, the value of the extension.
///
/// # Errors
/// That it does not.
pub(super) fn check(mut value: &[u8]) -> Result<(), &'static str> {
    let mut names = take(&mut value, SEQUENCE).ok_or(MALFORMED)?;
    while !names.is_empty() {
        let (tag, name) = take_any(&mut names).ok_or(MALFORMED)?;
        let accepted = match tag {
            EMAIL | DNS => name.is_ascii(),
            URI => name.is_ascii() && is_uri(name),
            IP => matches!(name.len(), 4 | 16),
            _ => tag & LONG_TAG != LONG_TAG,
        };
        if !accepted {
            return Err(MALFORMED);
        }
    }
    Ok(())
}

fn is_uri(text: &[u8]) -> bool {
    Url::parse(text).is_some_and(|url| url.host.is_empty() || is_domain(&url.host))
}

/// Whether all versions of Go accept a URI's host. (Go 1.25.2 and later also limit its length.)
fn is_domain(host: &[u8]) -> bool {
    host.iter().all(u8::is_ascii_graphic)
        && host
            .split(|&byte| byte == b'.')
            .all(|label| !label.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{der, extended, extension, modulus_of};
    use super::super::{SUBJECT_ALT_NAME, check};
    use super::*;

    /// Names, and whether Go's parser accepts them.
    const NAMES: [(u8, &[u8], bool); 26] = [
        (DNS, b"app.example", true),
        (DNS, b"*.app.example", true),
        (DNS, b"", true),
        (DNS, b"not a name", true),
        (DNS, "\u{e4}pp.example".as_bytes(), false),
        (EMAIL, b"me@app.example", true),
        (EMAIL, b"\xff", false),
        (IP, &[10, 0, 0, 1], true),
        (IP, &[0; 16], true),
        (IP, &[], false),
        (IP, &[10, 0, 0], false),
        (IP, &[10, 0, 0, 0, 255, 255, 255, 0], false),
        (IP, &[0; 17], false),
        (URI, b"spiffe://cluster.local/ns/a/sa/b", true),
        (URI, b"urn:a:b", true),
        (URI, b"https://app.example:8443/", true),
        (URI, b"", true),
        (URI, b"https://a b/", false),
        (URI, b"https://app.example./", false),
        (URI, b"https://app..example/", false),
        (URI, b"http://[::1/", false),
        (URI, b":", false),
        (URI, b"%zz://", false),
        (URI, b"https://app/\xc3\xa4", false),
        // Other kinds of names are not checked.
        (0xa4, b"\xff", true),
        (0x88, b"\xff", true),
    ];

    #[test]
    fn names_are_refused_as_by_go() {
        for (tag, name, accepted) in NAMES {
            let good = der(DNS, &[b"good.example"]);
            let names = der(SEQUENCE, &[&good, &der(tag, &[name])]);
            let extension = extension(SUBJECT_ALT_NAME, &names);
            let checked = check(&extended(&[1], &modulus_of(2048), &[&extension]));
            let name = String::from_utf8_lossy(name);
            assert_eq!(checked.is_ok(), accepted, "{tag:#x} {name:?}: {checked:?}");
        }
    }

    #[test]
    fn what_is_no_list_of_names_is_refused() {
        for value in [
            &[][..],
            &[4, 0],
            &[SEQUENCE, 1],
            &[SEQUENCE, 2, DNS, 5],
            &[SEQUENCE, 3, 0x9f, 1, 0],
        ] {
            assert_eq!(super::check(value), Err(MALFORMED), "{value:?}");
        }
    }
}
