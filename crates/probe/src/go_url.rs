//! URLs as Go's net/url parses and resolves them: not as browsers do.
//!
//! Source: `Parse`, `ResolveReference`, `RequestURI` and `String` in net/url/url.go of Go 1.26.

use std::net::{IpAddr, Ipv6Addr};

use model::Scheme;

/// The part of a URL to which a rule of escaping applies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Path,
    Host,
    Zone,
    User,
    Fragment,
}

impl Part {
    /// Whether Go leaves `byte` unescaped in this part (its `shouldEscape`).
    const fn leaves(self, byte: u8) -> bool {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => true,
            b'!' | b'(' | b')' | b'*' => matches!(self, Self::Host | Self::Zone | Self::Fragment),
            b'\'' | b'[' | b']' | b'<' | b'>' | b'"' => matches!(self, Self::Host | Self::Zone),
            b'$' | b'&' | b'+' | b',' | b';' | b'=' => true,
            b':' => !matches!(self, Self::User),
            b'/' | b'@' => matches!(self, Self::Path | Self::Fragment),
            b'?' => matches!(self, Self::Fragment),
            _ => false,
        }
    }

    /// Whether Go sends `byte` unescaped in this part if the URL has it so (its `validEncoded`).
    const fn keeps(self, byte: u8) -> bool {
        self.leaves(byte) || matches!(byte, b'!' | b'$'..=b'*' | b'[' | b']')
    }
}

/// A user and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: Vec<u8>,
    pub(super) password: Vec<u8>,
}

/// A URL, or a reference to one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Url {
    /// In lower case; empty in a relative reference.
    pub(super) scheme: String,
    pub(super) user: Option<User>,
    /// Host and port, unescaped.
    pub(super) host: Vec<u8>,
    /// Escaped.
    path: Vec<u8>,
    /// What follows `?`.
    query: Option<Vec<u8>>,
    /// Escaped.
    fragment: Vec<u8>,
}

impl Url {
    /// The URL of a request with request target `target` to `host`. `None` if the target is invalid.
    pub(super) fn of_request(scheme: Scheme, host: String, target: &str) -> Option<Self> {
        let (path, query) = cut(target.as_bytes(), b'?');
        Some(Self {
            scheme: match scheme {
                Scheme::Http => "http",
                Scheme::Https => "https",
            }
            .to_owned(),
            host: host.into_bytes(),
            path: escaped(path, Part::Path)?,
            query: query.map(<[u8]>::to_vec),
            ..Self::default()
        })
    }

    /// Parses a URL or a reference. `None` if it is invalid.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let (text, fragment) = cut(text, b'#');
        if text.iter().any(u8::is_ascii_control) {
            return None;
        }
        let (scheme, rest) = split_scheme(text)?;
        let (rest, query) = cut(rest, b'?');
        let mut url = Self {
            scheme,
            query: query.map(<[u8]>::to_vec),
            fragment: escaped(fragment.unwrap_or_default(), Part::Fragment)?,
            ..Self::default()
        };
        if !rest.starts_with(b"/") {
            if !url.scheme.is_empty() {
                // An opaque URL, such as `mailto:a@b`. It has no host.
                return Some(url);
            }
            if cut(rest, b'/').0.contains(&b':') {
                return None;
            }
        }
        let has_authority =
            rest.starts_with(b"//") && (!url.scheme.is_empty() || !rest.starts_with(b"///"));
        let path = if has_authority {
            let rest = &rest[2..];
            let end = rest.iter().position(|&byte| byte == b'/');
            let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
            (url.user, url.host) = parse_authority(&url.scheme, authority)?;
            path
        } else {
            rest
        };
        url.path = escaped(path, Part::Path)?;
        Some(url)
    }

    /// Whether it has a scheme.
    pub(super) fn is_absolute(&self) -> bool {
        !self.scheme.is_empty()
    }

    /// The URL to which `reference` refers from here.
    pub(super) fn resolve(&self, mut reference: Self) -> Self {
        let is_absolute = reference.is_absolute();
        if !is_absolute {
            reference.scheme.clone_from(&self.scheme);
        }
        if is_absolute || !reference.host.is_empty() || reference.user.is_some() {
            reference.path = resolve_path(&reference.path, b"");
            return reference;
        }
        if reference.path.is_empty() && reference.query.is_none() {
            reference.query = self.query.clone().filter(|query| !query.is_empty());
            if reference.fragment.is_empty() {
                reference.fragment.clone_from(&self.fragment);
            }
        }
        reference.host.clone_from(&self.host);
        reference.user.clone_from(&self.user);
        reference.path = resolve_path(&self.path, &reference.path);
        reference
    }

    /// The host without its port, and the port, which may be empty.
    fn host_and_port(&self) -> (&[u8], &[u8]) {
        let colon = self.host.iter().rposition(|&byte| byte == b':');
        let (name, port) = match colon.map(|colon| self.host.split_at(colon)) {
            Some((name, port)) if is_port(port) => (name, &port[1..]),
            _ => (self.host.as_slice(), b"".as_slice()),
        };
        let inside = name
            .strip_prefix(b"[")
            .and_then(|name| name.strip_suffix(b"]"));
        (inside.unwrap_or(name), port)
    }

    /// Whether its host is `ip`. Go compares the text.
    pub(super) fn is_at(&self, ip: IpAddr) -> bool {
        self.host_and_port().0 == ip.to_string().as_bytes()
    }

    /// The port, by default the scheme's. `None` if the port is above 65535.
    pub(super) fn port(&self, scheme: Scheme) -> Option<u16> {
        match (self.host_and_port().1, scheme) {
            ([], Scheme::Http) => Some(80),
            ([], Scheme::Https) => Some(443),
            (digits, _) => std::str::from_utf8(digits).ok()?.parse().ok(),
        }
    }

    /// The request target: path and query.
    pub(super) fn target(&self) -> Vec<u8> {
        let mut target = self.path.clone();
        if target.is_empty() {
            target.push(b'/');
        }
        self.push_query(&mut target);
        target
    }

    /// The text for a Referer: without the user.
    pub(super) fn as_referer(&self) -> Vec<u8> {
        let mut text = format!("{}://", self.scheme).into_bytes();
        text.extend_from_slice(&self.host);
        text.extend_from_slice(&self.path);
        self.push_query(&mut text);
        if !self.fragment.is_empty() {
            text.push(b'#');
            text.extend_from_slice(&self.fragment);
        }
        text
    }

    fn push_query(&self, text: &mut Vec<u8>) {
        if let Some(query) = &self.query {
            text.push(b'?');
            text.extend_from_slice(query);
        }
    }
}

/// What is before the first `byte`, and what is after it.
fn cut(text: &[u8], byte: u8) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|&other| other == byte) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// The scheme in lower case, empty if there is none, and the rest. `None` if the text begins with a colon.
fn split_scheme(text: &[u8]) -> Option<(String, &[u8])> {
    let is_in_scheme =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    let end = text.iter().position(|byte| !is_in_scheme(byte));
    match end.map(|end| text.split_at(end)) {
        Some(([], [b':', ..])) => None,
        Some((scheme @ [b'a'..=b'z' | b'A'..=b'Z', ..], [b':', rest @ ..])) => {
            Some((String::from_utf8_lossy(scheme).to_ascii_lowercase(), rest))
        }
        _ => Some((String::new(), text)),
    }
}

fn parse_authority(scheme: &str, authority: &[u8]) -> Option<(Option<User>, Vec<u8>)> {
    let Some(at) = authority.iter().rposition(|&byte| byte == b'@') else {
        return Some((None, parse_host(scheme, authority)?));
    };
    let host = parse_host(scheme, &authority[at + 1..])?;
    let user = &authority[..at];
    let is_valid =
        |&byte: &u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
    if !user.iter().all(is_valid) {
        return None;
    }
    let (name, password) = cut(user, b':');
    let user = User {
        name: unescaped(name, Part::User)?,
        password: unescaped(password.unwrap_or_default(), Part::User)?,
    };
    Some((Some(user), host))
}

/// Host and port, unescaped.
fn parse_host(scheme: &str, host: &[u8]) -> Option<Vec<u8>> {
    match host.iter().rposition(|&byte| byte == b'[') {
        Some(0) => return parse_ip_literal(host),
        Some(_) => return None,
        None => {}
    }
    // Only for these two schemes Go refuses a colon in the name.
    let is_colon = |&byte: &u8| byte == b':';
    let colon = match scheme {
        "http" | "https" => host.iter().position(is_colon),
        _ => host.iter().rposition(is_colon),
    };
    if colon.is_some_and(|colon| !is_port(&host[colon..])) {
        return None;
    }
    unescaped(host, Part::Host)
}

/// `[IPv6 address]` or `[IPv6 address%25zone]`, and a port.
fn parse_ip_literal(host: &[u8]) -> Option<Vec<u8>> {
    let end = host.iter().rposition(|&byte| byte == b']')?;
    let (address, port) = (&host[1..end], &host[end + 1..]);
    if !port.is_empty() && !is_port(port) {
        return None;
    }
    let zone = address.windows(3).position(|part| part == b"%25");
    let (address, zone) = address.split_at(zone.unwrap_or(address.len()));
    let address = unescaped(address, Part::Host)?;
    let zone = unescaped(zone, Part::Zone)?;
    let _: Ipv6Addr = std::str::from_utf8(&address).ok()?.parse().ok()?;
    // A zone begins with its `%`.
    if zone.len() == 1 {
        return None;
    }
    Some([b"[", address.as_slice(), &zone, b"]", port].concat())
}

/// Whether `text` is a colon and digits, or a colon alone.
fn is_port(text: &[u8]) -> bool {
    matches!(text, [b':', digits @ ..] if digits.iter().all(u8::is_ascii_digit))
}

/// `text` without its escapes. `None` if an escape is invalid, or in a host a character.
fn unescaped(text: &[u8], part: Part) -> Option<Vec<u8>> {
    let in_host = matches!(part, Part::Host | Part::Zone);
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            if in_host && first.is_ascii() && !part.leaves(first) {
                return None;
            }
            plain.push(first);
            continue;
        }
        let [high, low, after @ ..] = after else {
            return None;
        };
        rest = after;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let byte = u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?;
        let is_allowed = match part {
            // A host may have escapes of non-ASCII bytes only, a zone those of what a host may have.
            Part::Host => !byte.is_ascii() || byte == b'%',
            Part::Zone => matches!(byte, b'%' | b' ') || Part::Host.leaves(byte),
            Part::Path | Part::User | Part::Fragment => true,
        };
        if !is_allowed {
            return None;
        }
        plain.push(byte);
    }
    Some(plain)
}

/// `text` as Go sends it: unchanged if it is escaped, otherwise unescaped and escaped again. `None` if an escape is invalid.
fn escaped(text: &[u8], part: Part) -> Option<Vec<u8>> {
    let plain = unescaped(text, part)?;
    if part == Part::Path && text == b"%2A" {
        return Some(plain);
    }
    if text.iter().all(|&byte| part.keeps(byte)) {
        return Some(text.to_vec());
    }
    Some(plain.iter().fold(Vec::new(), |mut escaped, &byte| {
        if part.leaves(byte) {
            escaped.push(byte);
        } else {
            escaped.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
        escaped
    }))
}

/// The path of `reference` from `base`, without dot segments.
fn resolve_path(base: &[u8], reference: &[u8]) -> Vec<u8> {
    let full = match reference {
        [] => base.to_vec(),
        [b'/', ..] => reference.to_vec(),
        _ => {
            let slash = base.iter().rposition(|&byte| byte == b'/');
            let folder = &base[..slash.map_or(0, |slash| slash + 1)];
            [folder, reference].concat()
        }
    };
    if full.is_empty() {
        return full;
    }
    let mut path = vec![b'/'];
    let mut is_first = true;
    for element in full.split(|&byte| byte == b'/') {
        match element {
            b"." => is_first = false,
            b".." => {
                let slash = path[1..].iter().rposition(|&byte| byte == b'/');
                path.truncate(slash.map_or(1, |slash| slash + 1));
                is_first = path.len() == 1;
            }
            _ => {
                if !is_first {
                    path.push(b'/');
                }
                path.extend_from_slice(element);
                is_first = false;
            }
        }
    }
    if full.ends_with(b"/.") || full.ends_with(b"/..") || full == b"." || full == b".." {
        path.push(b'/');
    }
    // The path began with a slash of its own.
    if path.starts_with(b"//") {
        let _ = path.remove(0);
    }
    path
}
