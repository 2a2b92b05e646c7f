//! Resolves a redirect, and decides whether the kubelet would follow it.
//!
//! Source: `RedirectChecker` in kubernetes pkg/probe/http/http.go, `Client.do` and `refererForURL` in
//! Go's net/http/client.go.

use std::net::{IpAddr, SocketAddr};

use url::{Host, Url};

use model::Scheme;

/// Most requests that the kubelet's client makes for one probe, the first included: it stops "after 10
/// redirects", but counts requests.
pub const REQUESTS_LIMIT: usize = 10;

/// Whether `status` is a redirect that Go's client follows if there is a Location.
pub const fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// The target of one request in a chain of redirects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    url: Url,
    /// The authority as in Go's `URL.Host`, because `url` drops the scheme's default port.
    authority: String,
    /// The kubelet's Host header, if it differs from the authority.
    custom_host: Option<Vec<u8>>,
}

/// What to do about a redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Follow it, with this Referer.
    Follow(Hop, Option<String>),
    /// The kubelet would not follow it to this host, and would take the redirect itself as the answer.
    Elsewhere,
    /// The kubelet's client would fail.
    Invalid(&'static str),
}

impl Hop {
    /// The first request, as the kubelet makes it to the pod: `host` is its Host header. None if there is no
    /// valid URL with `target`.
    pub fn first(
        scheme: Scheme,
        address: SocketAddr,
        target: &str,
        host: Option<&[u8]>,
    ) -> Option<Self> {
        let scheme = match scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let authority = address.to_string();
        let url = Url::parse(&format!("{scheme}://{authority}{target}")).ok()?;
        let custom_host = host
            .filter(|host| *host != authority.as_bytes())
            .map(<[u8]>::to_vec);
        Some(Self {
            url,
            authority,
            custom_host,
        })
    }

    /// What to do about a redirect from here to `location`, for a probe of the pod at `pod`.
    pub fn step(&self, pod: IpAddr, location: &[u8]) -> Step {
        let location = ascii(location);
        let Ok(mut url) = self.url.join(&location) else {
            return Step::Invalid("Location is not a valid URL");
        };
        let same_host = match url.host() {
            Some(Host::Ipv4(ip)) => pod == ip,
            Some(Host::Ipv6(ip)) => pod == ip,
            Some(Host::Domain(_)) | None => false,
        };
        if !same_host {
            return Step::Elsewhere;
        }
        if !matches!(url.scheme(), "http" | "https") {
            return Step::Invalid("the scheme of Location is neither http nor https");
        }
        url.set_fragment(None);
        let absolute = Url::parse(&location).is_ok();
        let authority = if absolute || location.starts_with("//") {
            authority(&url)
        } else {
            self.authority.clone()
        };
        let referer = (!(self.url.scheme() == "https" && url.scheme() == "http")).then(|| {
            format!(
                "{}://{}{}",
                self.url.scheme(),
                self.authority,
                self.target()
            )
        });
        Step::Follow(
            Self {
                url,
                authority,
                // Go keeps the caller's own Host only if the redirect is relative.
                custom_host: self.custom_host.clone().filter(|_| !absolute),
            },
            referer,
        )
    }

    /// The request's Host header.
    pub fn host(&self) -> &[u8] {
        self.custom_host
            .as_deref()
            .unwrap_or(self.authority.as_bytes())
    }

    /// The request target: path and query.
    pub fn target(&self) -> String {
        match self.url.query() {
            Some(query) => format!("{}?{query}", self.url.path()),
            None => self.url.path().to_owned(),
        }
    }

    /// The scheme: whether to use TLS.
    pub fn scheme(&self) -> Scheme {
        if self.url.scheme() == "https" {
            Scheme::Https
        } else {
            Scheme::Http
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.url.port_or_known_default().unwrap_or(80)
    }
}

fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// `location` with all non-ASCII bytes percent-encoded, as in Go.
fn ascii(location: &[u8]) -> String {
    location.iter().fold(String::new(), |mut text, &byte| {
        if byte.is_ascii() {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(url: &str, host: Option<&str>) -> (Hop, IpAddr) {
        let url = Url::parse(url).expect("a URL");
        let scheme = if url.scheme() == "https" {
            Scheme::Https
        } else {
            Scheme::Http
        };
        let address = url.socket_addrs(|| None).expect("an address")[0];
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let hop = Hop::first(scheme, address, &target, host.map(str::as_bytes)).expect("a hop");
        (hop, address.ip())
    }

    /// From `from`, a redirect to `location` leads to `scheme port target host referer`.
    #[track_caller]
    fn follows(from: &str, host: Option<&str>, location: &str, expect: &str) {
        let (hop, pod) = first(from, host);
        match hop.step(pod, location.as_bytes()) {
            Step::Follow(next, referer) => assert_eq!(
                format!(
                    "{:?} {} {} {} {}",
                    next.scheme(),
                    next.port(),
                    next.target(),
                    String::from_utf8_lossy(next.host()),
                    referer.unwrap_or_default()
                ),
                expect,
                "{location}"
            ),
            other => panic!("{location}: {other:?}"),
        }
    }

    #[test]
    fn redirects_to_the_pod_are_followed() {
        let from = "http://10.0.0.1:8080/a/b?q";
        for (location, expect) in [
            ("/x?y=1#z", "Http 8080 /x?y=1 10.0.0.1:8080"),
            ("c", "Http 8080 /a/c 10.0.0.1:8080"),
            ("?r", "Http 8080 /a/b?r 10.0.0.1:8080"),
            ("http://10.0.0.1:9/", "Http 9 / 10.0.0.1:9"),
            ("//10.0.0.1:9/", "Http 9 / 10.0.0.1:9"),
            ("https://10.0.0.1/", "Https 443 / 10.0.0.1"),
            ("/\u{e4}", "Http 8080 /%C3%A4 10.0.0.1:8080"),
        ] {
            follows(from, None, location, &format!("{expect} {from}"));
        }
        follows(
            "http://[fd00::1]:8080/",
            None,
            "http://[fd00:0::1]:9/",
            "Http 9 / [fd00::1]:9 http://[fd00::1]:8080/",
        );
        // The kubelet's own URL includes the port even if it is the scheme's default.
        follows(
            "http://10.0.0.1:80/",
            None,
            "/x",
            "Http 80 /x 10.0.0.1:80 http://10.0.0.1:80/",
        );
    }

    #[test]
    fn a_redirect_from_https_to_http_has_no_referer() {
        follows(
            "https://10.0.0.1:8443/",
            None,
            "http://10.0.0.1:8080/",
            "Http 8080 / 10.0.0.1:8080 ",
        );
    }

    #[test]
    fn a_custom_host_is_kept_for_relative_redirects_only() {
        let from = "http://10.0.0.1:8080/";
        let host = Some("app.example");
        follows(
            from,
            host,
            "/x",
            &format!("Http 8080 /x app.example {from}"),
        );
        follows(
            from,
            host,
            "http://10.0.0.1:8080/x",
            &format!("Http 8080 /x 10.0.0.1:8080 {from}"),
        );
    }

    #[test]
    fn redirects_to_another_host_are_not_followed() {
        let (hop, pod) = first("http://10.0.0.1:8080/", Some("app.example"));
        for location in [
            "http://10.0.0.2:8080/",
            "http://app.example/",
            "//app.example/",
            "http://localhost:8080/",
            "mailto:a@b",
        ] {
            assert_eq!(
                hop.step(pod, location.as_bytes()),
                Step::Elsewhere,
                "{location}"
            );
        }
    }

    #[test]
    fn a_location_that_is_not_an_http_url_is_invalid() {
        let (hop, pod) = first("http://10.0.0.1:8080/", None);
        for location in ["http://[", "http://10.0.0.1:99999/", "ftp://10.0.0.1/"] {
            assert!(
                matches!(hop.step(pod, location.as_bytes()), Step::Invalid(_)),
                "{location}"
            );
        }
    }
}
