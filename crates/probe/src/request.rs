//! Parses the request head that the kubelet sent, and makes the heads for the app from it.

use std::mem::MaybeUninit;

use super::redirect::Hop;

/// Maximum number of headers in a request that is parsed.
pub use model::bounds::HEADERS_LIMIT;

/// Headers that HTTP/2 does not allow (RFC 9113, 8.2.2). TE is here too: HTTP/2 allows only one of its values.
const NOT_IN_HTTP2: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// A request head, as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Method, case as sent.
    pub method: &'a str,
    /// Request target, as sent.
    pub target: &'a str,
    /// Name and value of each header, in order, case as sent.
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// Length of the head in bytes, the empty line included.
    pub length: usize,
}

/// The bytes are not a valid HTTP/1 request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl<'a> Request<'a> {
    /// Parses the head at the beginning of `bytes`; `None` while it is incomplete.
    ///
    /// # Errors
    /// [`Malformed`] if `bytes` do not begin an HTTP/1 request, or have more than 256 headers.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<Self>, Malformed> {
        let mut headers = [const { MaybeUninit::uninit() }; HEADERS_LIMIT];
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(bytes, &mut headers) {
            Ok(httparse::Status::Complete(length)) => Ok(Some(Self {
                method: request.method.unwrap_or_default(),
                target: request.path.unwrap_or_default(),
                headers: request
                    .headers
                    .iter()
                    .map(|header| (header.name, header.value))
                    .collect(),
                length,
            })),
            Ok(httparse::Status::Partial) => Ok(None),
            Err(_) => Err(Malformed),
        }
    }

    /// The value of the first header `name` (any case).
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value)
    }

    /// The headers that HTTP/2 allows.
    pub fn in_http2(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.but(&NOT_IN_HTTP2)
    }

    fn but(&self, names: &'static [&'static str]) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let named = |other: &str| names.iter().any(|name| name.eq_ignore_ascii_case(other));
        self.headers
            .iter()
            .copied()
            .filter(move |(name, _)| !named(name))
    }

    /// The head without Authorization, as the kubelet sends it when a hook falls back from TLS to plaintext.
    pub fn without_authorization(&self) -> Vec<u8> {
        let mut head = Head::get(self.target.as_bytes());
        for (name, value) in self.but(&["authorization"]) {
            head.header(name, value);
        }
        head.finish()
    }

    /// Whether the head announces a body.
    pub fn has_body(&self) -> bool {
        self.header("transfer-encoding").is_some()
            || self
                .header("content-length")
                .is_some_and(|length| length != b"0")
    }

    /// The head for the app, of a probe that was sent to an agent's port `from`: `target` on the app's port `to`.
    /// The kubelet's headers are unchanged except Connection, and a Host that contains the agent's port.
    pub fn rewritten(&self, target: &str, from: u16, to: u16) -> Vec<u8> {
        let mut head = Head::get(target.as_bytes());
        for (name, value) in self.but(&["connection"]) {
            if name.eq_ignore_ascii_case("host") {
                head.header(name, &with_port(value, from, to));
            } else {
                head.header(name, value);
            }
        }
        head.header("Connection", b"close");
        head.finish()
    }

    /// The head that follows a redirect to `hop`: the same headers, with its Host, and with the Referer and with its
    /// Authorization unless the kubelet sent its own.
    pub fn redirected(&self, hop: &Hop, referer: Option<&[u8]>) -> Vec<u8> {
        let mut head = Head::get(&hop.target());
        if self.header("host").is_none() {
            head.header("Host", hop.host());
        }
        let authorization = hop.authorization();
        let replaced = |name: &str, value: &[u8]| {
            name.eq_ignore_ascii_case("authorization")
                && value.is_empty()
                && authorization.is_some()
        };
        for (name, value) in &self.headers {
            if name.eq_ignore_ascii_case("host") {
                head.header(name, hop.host());
            } else if !replaced(name, value) {
                head.header(name, value);
            }
        }
        let has = |name| self.header(name).is_some_and(|value| !value.is_empty());
        if let Some(referer) = referer
            && !has("referer")
        {
            head.header("Referer", referer);
        }
        if let Some(authorization) = &authorization
            && !has("authorization")
        {
            head.header("Authorization", authorization.as_bytes());
        }
        head.finish()
    }
}

/// `host` with port `from` replaced by `to`. A host with another port, or without one, was configured so: it is unchanged.
fn with_port(host: &[u8], from: u16, to: u16) -> Vec<u8> {
    match host.strip_suffix(format!(":{from}").as_bytes()) {
        Some(name) => [name, format!(":{to}").as_bytes()].concat(),
        None => host.to_vec(),
    }
}

/// Builds a request head.
pub(crate) struct Head(Vec<u8>);

impl Head {
    pub(crate) fn get(target: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(512);
        bytes.extend_from_slice(b"GET ");
        bytes.extend_from_slice(target);
        bytes.extend_from_slice(b" HTTP/1.1\r\n");
        Self(bytes)
    }

    pub(crate) fn header(&mut self, name: &str, value: &[u8]) {
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b": ");
        self.0.extend_from_slice(value);
        self.0.extend_from_slice(b"\r\n");
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"\r\n");
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redirect::Step;
    use model::Scheme;

    const HEAD: &[u8] = b"GET /app-health/app/livez HTTP/1.1\r\nHost: 10.0.0.1:15020\r\n\
        User-Agent: kube-probe/1.36\r\nX-CaSe: a:15020\r\nKeep-Alive: 5\r\nTE: trailers\r\n\
        Accept: */*\r\nConnection: close\r\n\r\n";

    fn parse(bytes: &[u8]) -> Request<'_> {
        Request::parse(bytes).expect("a request").expect("whole")
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).expect("ASCII")
    }

    #[test]
    fn a_head_is_parsed_once_it_is_complete() {
        assert_eq!(Request::parse(&HEAD[..HEAD.len() - 1]), Ok(None));
        let request = parse(HEAD);
        assert_eq!(
            (request.method, request.target),
            ("GET", "/app-health/app/livez")
        );
        assert_eq!(
            request.header("user-agent"),
            Some(b"kube-probe/1.36".as_slice())
        );
        assert_eq!(request.length, HEAD.len());
        assert_eq!(Request::parse(b"\x16\x03\x01"), Err(Malformed));
    }

    #[test]
    fn a_rewritten_request_keeps_order_and_case_and_adds_nothing() {
        assert_eq!(
            text(parse(HEAD).rewritten("/healthz?x=1", 15020, 8080)),
            "GET /healthz?x=1 HTTP/1.1\r\nHost: 10.0.0.1:8080\r\nUser-Agent: kube-probe/1.36\r\n\
             X-CaSe: a:15020\r\nKeep-Alive: 5\r\nTE: trailers\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn only_a_host_with_the_agents_port_gets_the_apps_port() {
        for (host, expect) in [
            ("10.0.0.1:15020", "10.0.0.1:8080"),
            ("[fd00::1]:15020", "[fd00::1]:8080"),
            ("app.example", "app.example"),
            ("app.example:15020", "app.example:8080"),
            ("app.example:81", "app.example:81"),
            ("app.example:115020", "app.example:115020"),
        ] {
            assert_eq!(text(with_port(host.as_bytes(), 15020, 8080)), expect);
        }
    }

    /// The request after a redirect of `head` to `location`.
    fn redirected(head: &[u8], location: &str) -> String {
        let address = "10.0.0.1:8080".parse().expect("an address");
        let first = Hop::first(Scheme::Http, address, "/", None).expect("a hop");
        match first.step(address.ip(), location.as_bytes()) {
            Step::Follow(hop, referer) => text(parse(head).redirected(&hop, referer.as_deref())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_redirected_request_has_the_kubelets_headers_and_a_referer() {
        assert_eq!(
            redirected(
                b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nConnection: close\r\n\r\n",
                "http://10.0.0.1:80/b"
            ),
            "GET /b HTTP/1.1\r\nHost: 10.0.0.1:80\r\nX: 1\r\nConnection: close\r\n\
             Referer: http://10.0.0.1:8080/\r\n\r\n"
        );
        let own = redirected(b"GET / HTTP/1.1\r\nHost: a\r\nReferer: mine\r\n\r\n", "/b");
        assert!(own.contains("Referer: mine\r\n"), "{own}");
        assert!(!own.contains("8080/\r\n"), "{own}");
    }

    #[test]
    fn a_user_in_the_location_becomes_an_authorization_unless_there_is_one() {
        const BASIC: &str = "Authorization: Basic dTpw\r\n";
        let location = "http://u:p@10.0.0.1:8080/b";
        for (header, has) in [
            ("X: 1", true),
            ("Authorization:", true),
            ("authorization: Bearer x", false),
        ] {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n");
            let head = redirected(head.as_bytes(), location);
            assert_eq!(head.contains(BASIC), has, "{head}");
            let lower = head.to_ascii_lowercase();
            assert_eq!(lower.matches("authorization:").count(), 1, "{head}");
        }
    }

    #[test]
    fn an_announced_body_is_recognized() {
        for (header, body) in [
            ("Content-Length: 0", false),
            ("Content-Length: 1", true),
            ("Transfer-Encoding: chunked", true),
            ("X: y", false),
        ] {
            let head = format!("GET / HTTP/1.1\r\n{header}\r\n\r\n");
            assert_eq!(parse(head.as_bytes()).has_body(), body, "{header}");
        }
    }
}
