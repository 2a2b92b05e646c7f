//! The request target that the kubelet sends for an `httpGet.path`.
//!
//! The kubelet parses the path with Go's `url.Parse`, sets scheme and host, and sends
//! `URL.RequestURI()`; a path that does not parse becomes `URL.Path` unchanged
//! (kubernetes pkg/probe/http/request.go `formatURL`, Go src/net/url/url.go). The handler compares
//! targets byte for byte, so this must return exactly Go's target or nothing.

/// The request target for `path`. `None` if Go's result is not reproduced here: an absolute URL, a path that
/// begins with `//`, or a query with bytes that are not allowed in a request line.
pub fn request_target(path: &str) -> Option<String> {
    let (url, fragment) = path.split_once('#').unwrap_or((path, ""));
    match parse(url) {
        Parsed::Path { path: p, query } if well_escaped(fragment) => {
            let mut target = escaped_path(p);
            if !target.starts_with('/') {
                target.insert(0, '/');
            }
            if let Some(query) = query {
                if !query.bytes().all(|b| b.is_ascii_graphic()) {
                    return None;
                }
                target.push('?');
                target.push_str(query);
            }
            Some(target)
        }
        // Legacy mode: the whole text, including `?` and `#`, becomes the path.
        Parsed::Path { .. } | Parsed::Invalid => {
            let mut target = escape(path.as_bytes());
            if target.starts_with("//") {
                return None;
            }
            if !target.starts_with('/') {
                target.insert(0, '/');
            }
            Some(target)
        }
        Parsed::Other => None,
    }
}

enum Parsed<'a> {
    /// A path and, after a `?`, a query (empty for a lone `?`, which Go keeps).
    Path {
        path: &'a str,
        query: Option<&'a str>,
    },
    /// Go's `url.Parse` fails.
    Invalid,
    /// Has a scheme or an authority.
    Other,
}

/// Go's `url.parse` without the fragment, limited to paths.
fn parse(url: &str) -> Parsed<'_> {
    if url.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Parsed::Invalid;
    }
    match scheme(url) {
        Scheme::Missing => return Parsed::Invalid,
        Scheme::Some => return Parsed::Other,
        Scheme::None => {}
    }
    let (path, query) = match url.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (url, None),
    };
    if path.starts_with("//") {
        return Parsed::Other;
    }
    let first_segment = path.split('/').next().unwrap_or_default();
    if first_segment.contains(':') || !well_escaped(path) {
        return Parsed::Invalid;
    }
    Parsed::Path { path, query }
}

enum Scheme {
    /// `:` comes first: Go returns "missing protocol scheme".
    Missing,
    Some,
    None,
}

/// Go's `getScheme`.
fn scheme(url: &str) -> Scheme {
    for (i, b) in url.bytes().enumerate() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if i > 0 => {}
            b':' if i == 0 => return Scheme::Missing,
            b':' => return Scheme::Some,
            _ => return Scheme::None,
        }
    }
    Scheme::None
}

/// Go's `URL.EscapedPath` for a path whose escapes are well formed: unchanged when it is a valid encoding
/// already, otherwise decoded and encoded again.
fn escaped_path(path: &str) -> String {
    if path.bytes().all(is_valid_encoded) {
        path.to_owned()
    } else {
        escape(&unescape(path))
    }
}

/// Go's `validEncoded` for paths.
fn is_valid_encoded(b: u8) -> bool {
    matches!(b, b'!' | b'\'' | b'(' | b')' | b'*' | b'[' | b']' | b'%') || !must_escape(b)
}

/// Go's `shouldEscape` for paths.
fn must_escape(b: u8) -> bool {
    !(b.is_ascii_alphanumeric()
        || matches!(
            b,
            b'-' | b'_'
                | b'.'
                | b'~'
                | b'$'
                | b'&'
                | b'+'
                | b','
                | b'/'
                | b':'
                | b';'
                | b'='
                | b'@'
        ))
}

fn escape(bytes: &[u8]) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(bytes.len());
    for &b in bytes {
        if must_escape(b) {
            out.push('%');
            out.push(char::from(HEX[usize::from(b >> 4)]));
            out.push(char::from(HEX[usize::from(b & 15)]));
        } else {
            out.push(char::from(b));
        }
    }
    out
}

/// Whether every `%` is followed by two hexadecimal digits.
fn well_escaped(s: &str) -> bool {
    s.split('%').skip(1).all(|after| {
        let digits = after.as_bytes();
        digits.len() >= 2 && digits[..2].iter().all(u8::is_ascii_hexdigit)
    })
}

/// Decodes `%XX`; other bytes are kept.
fn unescape(s: &str) -> Vec<u8> {
    let hex = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut out = Vec::with_capacity(s.len());
    let mut rest = s.as_bytes();
    while let [b, tail @ ..] = rest {
        if let (b'%', [high, low, after @ ..]) = (b, tail)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            out.push(high << 4 | low);
            rest = after;
        } else {
            out.push(*b);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_what_go_sends() {
        for (path, target) in [
            ("", "/"),
            ("/", "/"),
            ("/healthz", "/healthz"),
            ("healthz", "/healthz"),
            ("healthz/", "/healthz/"),
            ("/a/../b", "/a/../b"),
            ("/a//b", "/a//b"),
            // Queries are kept as they are, a lone question mark too.
            ("/healthz?", "/healthz?"),
            ("?ready=1", "/?ready=1"),
            ("/h?a=b&c=%zz?d", "/h?a=b&c=%zz?d"),
            // Fragments are not sent.
            ("/h#top", "/h"),
            ("/h?a=b#top", "/h?a=b"),
            ("#top", "/"),
            // A valid encoding is kept, an invalid one is encoded again.
            ("/a%2Fb", "/a%2Fb"),
            ("/a%2fb", "/a%2fb"),
            ("/a b", "/a%20b"),
            ("/a%2fb c", "/a/b%20c"),
            ("/ü", "/%C3%BC"),
            ("/\"x\"", "/%22x%22"),
            ("/(a)!*'[1]", "/(a)!*'[1]"),
            ("*", "/*"),
            ("/a:b;c,d@e$f&g+h=i~", "/a:b;c,d@e$f&g+h=i~"),
            ("/<a>(b)", "/%3Ca%3E%28b%29"),
            // What Go can't parse is used as the path.
            ("/100%", "/100%25"),
            ("/100%?a=b#c", "/100%25%3Fa=b%23c"),
            ("/h#%zz", "/h%23%25zz"),
            (":80/h", "/:80/h"),
            ("1a:b/c", "/1a:b/c"),
            ("/a\tb", "/a%09b"),
        ] {
            assert_eq!(request_target(path).as_deref(), Some(target), "{path:?}");
        }
    }

    #[test]
    fn there_is_no_target_where_go_is_not_reproduced() {
        for path in [
            "http://other/healthz",
            "mailto:x",
            "//host/healthz",
            "///healthz",
            "/h?a b",
            "/h?ü",
        ] {
            assert_eq!(request_target(path), None, "{path:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_target_is_a_path_of_visible_ascii_and_stable(path in "\\PC{0,40}") {
            if let Some(target) = request_target(&path) {
                proptest::prop_assert!(target.starts_with('/'));
                proptest::prop_assert!(target.bytes().all(|b| b.is_ascii_graphic()));
                if !target.starts_with("//") {
                    proptest::prop_assert_eq!(request_target(&target), Some(target.clone()));
                }
            }
        }
    }
}
