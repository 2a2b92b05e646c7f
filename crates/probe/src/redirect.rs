//! Resolves a redirect, and decides whether the kubelet would follow it.
//!
//! Source: `RedirectChecker` in kubernetes pkg/probe/http/http.go, `Client.do` and `refererForURL` in
//! Go's net/http/client.go.

use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::go_url::Url;
use model::Scheme;

/// Maximum number of requests that the kubelet's client makes for one probe, the first included: it stops
/// "after 10 redirects", but counts requests.
pub const REQUESTS_LIMIT: usize = 10;

/// Whether `status` is a redirect that Go's client follows if there is a Location.
pub const fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// The target of one request in a chain of redirects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    url: Url,
    scheme: Scheme,
    port: u16,
    /// The kubelet's Host header, if it differs from the URL's host.
    custom_host: Option<Vec<u8>>,
}

/// What to do about a redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Follow it, with this Referer.
    Follow(Box<Hop>, Option<Vec<u8>>),
    /// The kubelet would not follow it to this host, and would take the redirect itself as the answer.
    Elsewhere,
    /// The kubelet's client would fail.
    Invalid(&'static str),
}

impl Hop {
    /// The first request, as the kubelet makes it to the pod: `host` is its Host header. `None` if there is no
    /// valid URL with `target`.
    pub fn first(
        scheme: Scheme,
        address: SocketAddr,
        target: &str,
        host: Option<&[u8]>,
    ) -> Option<Self> {
        let url = Url::of_request(scheme, address.to_string(), target)?;
        let custom_host = host.filter(|host| *host != url.host).map(<[u8]>::to_vec);
        Some(Self {
            url,
            scheme,
            port: address.port(),
            custom_host,
        })
    }

    /// What to do about a redirect from here to `location`, for a probe of the pod at `pod`.
    pub fn step(&self, pod: IpAddr, location: &[u8]) -> Step {
        let Some(reference) = Url::parse(location) else {
            return Step::Invalid("Location is not a valid URL");
        };
        let is_absolute = reference.is_absolute();
        let url = self.url.resolve(reference);
        if !url.is_at(pod) {
            return Step::Elsewhere;
        }
        let scheme = match url.scheme.as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Step::Invalid("the scheme of Location is neither http nor https"),
        };
        let Some(port) = url.port(scheme) else {
            return Step::Invalid("the port of Location is above 65535");
        };
        let is_downgrade = (self.scheme, scheme) == (Scheme::Https, Scheme::Http);
        let referer = (!is_downgrade).then(|| self.url.as_referer());
        let hop = Self {
            url,
            scheme,
            port,
            // Go keeps the caller's own Host only if the redirect is relative.
            custom_host: self.custom_host.clone().filter(|_| !is_absolute),
        };
        Step::Follow(Box::new(hop), referer)
    }

    /// The request's Host header.
    pub fn host(&self) -> &[u8] {
        self.custom_host.as_deref().unwrap_or(&self.url.host)
    }

    /// The request target: path and query.
    pub fn target(&self) -> Vec<u8> {
        self.url.target()
    }

    /// The Authorization header that Go's client makes of the URL's user and password.
    pub fn authorization(&self) -> Option<String> {
        let user = self.url.user.as_ref()?;
        let pair = [user.name.as_slice(), b":", &user.password].concat();
        Some(format!("Basic {}", STANDARD.encode(pair)))
    }

    /// The scheme: whether to use TLS.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Redirects and what the kubelet's client does about them: URL of the first request, its Host header, Location,
    /// then either `elsewhere`, `fail`, or `follow` with scheme, port, target, Host, Referer and Authorization of the
    /// second request. `-` is empty, `\xNN` a byte. Recorded from net/http of Go 1.26 with the kubelet's CheckRedirect.
    const RECORDED: &str = include_str!("fixtures/redirects.tsv");

    fn decoded(field: &str) -> Vec<u8> {
        let mut parts = match field {
            "-" => "",
            field => field,
        }
        .split("\\x");
        let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
        for part in parts {
            let (digits, rest) = part.split_at(2);
            bytes.push(u8::from_str_radix(digits, 16).expect("a byte"));
            bytes.extend_from_slice(rest.as_bytes());
        }
        bytes
    }

    fn first(url: &str, host: &[u8]) -> (Hop, IpAddr) {
        let (scheme, rest) = url.split_once("://").expect("a scheme");
        let scheme = match scheme {
            "https" => Scheme::Https,
            _ => Scheme::Http,
        };
        let (address, target) = rest.split_at(rest.find('/').expect("a path"));
        let address: SocketAddr = address.parse().expect("an address");
        let host = Some(host).filter(|host| !host.is_empty());
        let hop = Hop::first(scheme, address, target, host).expect("a hop");
        (hop, address.ip())
    }

    /// What we do, as the fields of [`RECORDED`].
    fn outcome(url: &str, host: &str, location: &str) -> Vec<Vec<u8>> {
        let (hop, pod) = first(url, &decoded(host));
        match hop.step(pod, &decoded(location)) {
            Step::Elsewhere => vec![b"elsewhere".to_vec()],
            Step::Invalid(_) => vec![b"fail".to_vec()],
            Step::Follow(next, referer) => vec![
                b"follow".to_vec(),
                match next.scheme() {
                    Scheme::Http => b"http".to_vec(),
                    Scheme::Https => b"https".to_vec(),
                },
                next.port().to_string().into_bytes(),
                next.target(),
                next.host().to_vec(),
                referer.unwrap_or_default(),
                next.authorization().unwrap_or_default().into_bytes(),
            ],
        }
    }

    #[test]
    fn a_redirect_is_resolved_and_followed_as_by_go() {
        let mut count = 0;
        for line in RECORDED.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<_> = line.split('\t').collect();
            let [url, host, location, expect @ ..] = fields.as_slice() else {
                panic!("{line}");
            };
            let expect: Vec<_> = expect.iter().map(|field| decoded(field)).collect();
            let text =
                |fields: &[Vec<u8>]| String::from_utf8_lossy(&fields.join(&b' ')).into_owned();
            let outcome = outcome(url, host, location);
            assert_eq!(text(&outcome), text(&expect), "{line}");
            assert_eq!(outcome, expect, "{line}");
            count += 1;
        }
        assert!(count > 100, "{count} cases");
    }

    #[test]
    fn any_location_is_resolved_without_a_panic() {
        proptest::proptest!(|(location: Vec<u8>)| {
            let (hop, pod) = first("http://10.0.0.1:8080/a/b?q", b"");
            let _step = hop.step(pod, &location);
        });
    }
}
