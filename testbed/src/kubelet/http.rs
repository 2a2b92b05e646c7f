//! HTTP probes and hooks (kubernetes pkg/probe/http, pkg/kubelet/lifecycle/handlers.go), with what
//! Go's net/http client adds: header order, redirects.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, timeout_at};
use url::{Position, Url};

use super::execute::Attempt;
use super::{Dialer, Outcome, Probe, ProbeResult, Scheme, http1, http2, tls};

const BODY_LIMIT: usize = 10 << 10;
const REDIRECTS: usize = 10;
/// How long Go's client keeps an unused connection.
const IDLE: Duration = Duration::from_secs(90);

/// A probe's client and a hook's differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    Probe,
    Hook,
}

/// The last answer.
struct Answer {
    status: u16,
    head: String,
    location: Option<String>,
    peer: Option<SocketAddr>,
    /// `None` when it could not be read to its end.
    body: Result<Vec<u8>>,
}

/// One attempt of an `httpGet` probe.
pub(super) async fn probe(
    probe: &Probe,
    dialer: Dialer,
    scheme: Scheme,
    path: &str,
    headers: &[(String, String)],
) -> Attempt {
    let deadline = Deadline::of(probe);
    let get = get(
        probe,
        dialer,
        Client::Probe,
        deadline,
        scheme,
        path,
        headers,
    );
    let answer = match deadline.bound(get).await {
        Ok(answer) => answer,
        Err(error) => return Attempt::Done(ProbeResult::failure(format!("{error:#}"))),
    };
    let mut result = ProbeResult::failure("");
    result.status = Some(answer.status);
    result.head = answer.head;
    result.peer = answer.peer;
    let body = match answer.body {
        Ok(body) => body,
        Err(error) => {
            result.message = format!("{error:#}");
            return Attempt::Error(result);
        }
    };
    result.body = String::from_utf8_lossy(&body).into_owned();
    (result.outcome, result.message) = match answer.status {
        200..300 => (Outcome::Success, result.body.clone()),
        300..400 => {
            let message = format!("Probe terminated redirects, Response body: {}", result.body);
            (Outcome::Warning, message)
        }
        status => (
            Outcome::Failure,
            format!("HTTP probe failed with statuscode: {status}"),
        ),
    };
    Attempt::Done(result)
}

/// A lifecycle hook: any status is success, only a transport error is failure.
pub(super) async fn hook(
    probe: &Probe,
    dialer: Dialer,
    scheme: Scheme,
    path: &str,
    headers: &[(String, String)],
) -> ProbeResult {
    let ask = async |scheme| {
        let deadline = Deadline::of(probe);
        let get = get(probe, dialer, Client::Hook, deadline, scheme, path, headers);
        deadline.bound(get).await
    };
    let answer = match ask(scheme).await {
        // "server gave HTTP response to HTTPS client": tried again in plaintext.
        Err(error) if scheme == Scheme::Https && is_plaintext(&error) => ask(Scheme::Http).await,
        other => other,
    };
    match answer {
        Ok(answer) => {
            let mut result = ProbeResult::new(Outcome::Success, "");
            result.status = Some(answer.status);
            result.head = answer.head;
            result.peer = answer.peer;
            result.body = String::from_utf8_lossy(&answer.body.unwrap_or_default()).into_owned();
            result
        }
        Err(error) => ProbeResult::failure(format!("{error:#}")),
    }
}

fn is_plaintext(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .filter_map(|cause| cause.get_ref()?.downcast_ref::<rustls::Error>())
        .any(|cause| matches!(cause, rustls::Error::InvalidMessage(_)))
}

/// Deadlines of Go's client: for the head, and for the body once it has begun.
#[derive(Clone, Copy)]
pub(super) struct Deadline(Option<Instant>);

impl Deadline {
    fn of(probe: &Probe) -> Self {
        Self(probe.timeout.map(|timeout| Instant::now() + timeout))
    }

    /// The result of `work`, if it ends in time.
    pub(super) async fn bound<T>(self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match self.0 {
            Some(deadline) => match timeout_at(deadline, work).await {
                Ok(done) => done,
                Err(_) => bail!("context deadline exceeded (Client.Timeout exceeded)"),
            },
            None => work.await,
        }
    }
}

/// GETs, following redirects to the same host name.
async fn get(
    probe: &Probe,
    dialer: Dialer,
    client: Client,
    deadline: Deadline,
    scheme: Scheme,
    path: &str,
    headers: &[(String, String)],
) -> Result<Answer> {
    let mut url = first_url(probe, scheme, path)?;
    let headers = Headers::new(client, headers);
    let mut host = headers.host.clone();
    let mut sent = headers.sorted;
    for via in 1.. {
        let authority = url[Position::BeforeHost..Position::AfterPort].to_owned();
        let host_header = host.clone().unwrap_or_else(|| authority.clone());
        let answer = once(probe, dialer, client, deadline, &url, &host_header, &sent).await?;
        let follow = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
        let Some(location) = answer.location.as_deref().filter(|_| follow) else {
            return Ok(answer); // also a redirect without Location
        };
        let next = url
            .join(location)
            .with_context(|| format!("failed to parse Location header {location:?}"))?;
        if client == Client::Probe && next.host_str() != url.host_str() {
            return Ok(answer);
        }
        if via >= REDIRECTS {
            bail!("stopped after {REDIRECTS} redirects");
        }
        if !matches!(next.scheme(), "http" | "https") {
            bail!("unsupported protocol scheme {:?}", next.scheme());
        }
        if Url::parse(location).is_ok() {
            host = None; // only a relative Location keeps the probe's own Host
        }
        if !(url.scheme() == "https" && next.scheme() == "http") {
            set(&mut sent, "Referer", url.as_str());
        }
        url = next;
    }
    Err(anyhow!(
        "unreachable: the loop ends at {REDIRECTS} redirects"
    ))
}

/// One request on a connection of its own.
async fn once(
    probe: &Probe,
    dialer: Dialer,
    client: Client,
    deadline: Deadline,
    url: &Url,
    host: &str,
    headers: &[(String, String)],
) -> Result<Answer> {
    let https = url.scheme() == "https";
    let port = url.port_or_known_default().context("a URL without port")?;
    let mut target = probe.clone();
    // A hook may be redirected to another host; the testbed has no names, only addresses.
    if let Some(ip) = url
        .host_str()
        .and_then(|text| text.trim_matches(['[', ']']).parse().ok())
    {
        target.ip = ip;
    } else {
        bail!(
            "lookup {}: no such host",
            url.host_str().unwrap_or_default()
        );
    }
    let stream = dialer
        .connect(&target, port)
        .await
        .with_context(|| format!("dial tcp {}:{port}", target.ip))?;
    let peer = stream.peer_addr().ok();
    if !https {
        return over_http1(stream, client, deadline, url, host, headers, peer).await;
    }
    // A hook's connection stays open. The daemon closes it at its end only if the client resumes no sessions.
    let (alpn, versions): (&[&[u8]], _) = match client {
        Client::Probe => (&[b"h2", b"http/1.1"], rustls::ALL_VERSIONS),
        Client::Hook => (&[], tls::WITHOUT_RESUMPTION),
    };
    let stream = tls::connect(stream, target.ip, alpn, versions)
        .await
        .context("TLS")?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return over_http1(stream, client, deadline, url, host, headers, peer).await;
    }
    let (parts, head, body) = http2::get(stream, deadline, url, host, headers, BODY_LIMIT).await?;
    let location = parts.headers.get(http::header::LOCATION);
    Ok(Answer {
        status: parts.status.as_u16(),
        head,
        location: location.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()),
        peer,
        body,
    })
}

async fn over_http1<S>(
    mut stream: S,
    client: Client,
    deadline: Deadline,
    url: &Url,
    host: &str,
    headers: &[(String, String)],
    peer: Option<SocketAddr>,
) -> Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let target = &url[Position::BeforePath..Position::AfterQuery];
    let mut request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n");
    // Go writes User-Agent next, then the rest sorted, then what its transport adds.
    let (agent, rest): (Vec<_>, Vec<_>) =
        headers.iter().partition(|(name, _)| name == "User-Agent");
    if let Some((name, value)) = agent.first()
        && !value.is_empty()
    {
        request += &format!("{name}: {value}\r\n");
    }
    for (name, value) in rest {
        request += &format!("{name}: {value}\r\n");
    }
    request += match client {
        Client::Probe => "Connection: close\r\n\r\n",
        Client::Hook => "Accept-Encoding: gzip\r\n\r\n",
    };
    let response = http1::exchange(&mut stream, &request).await?;
    let (status, head) = (response.status, response.head.clone());
    let location = response.header("location").map(ToOwned::to_owned);
    let body = deadline
        .bound(http1::body(&mut stream, response, BODY_LIMIT))
        .await;
    if client == Client::Hook {
        tokio::spawn(idle(stream));
    }
    Ok(Answer {
        status,
        head,
        location,
        peer,
        body,
    })
}

/// A hook's connection stays in the client's pool until the other end closes it.
async fn idle(mut stream: impl AsyncRead + Unpin) {
    let mut buffer = [0; 1024];
    let wait = async { while matches!(stream.read(&mut buffer).await, Ok(1..)) {} };
    let _either_way = tokio::time::timeout(IDLE, wait).await;
}

/// The URL that the kubelet forms: the path may lack its slash or contain a query.
fn first_url(probe: &Probe, scheme: Scheme, path: &str) -> Result<Url> {
    let scheme = match scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    };
    let host = match probe.ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    Url::parse(&format!("{scheme}://{host}:{}{slash}{path}", probe.port))
        .with_context(|| format!("path {path:?}"))
}

/// `httpHeaders` as the kubelet prepares them.
struct Headers {
    host: Option<String>,
    sorted: Vec<(String, String)>,
}

impl Headers {
    fn new(client: Client, declared: &[(String, String)]) -> Self {
        let mut host = None;
        let mut sorted: Vec<(String, String)> = Vec::new();
        for (name, value) in declared {
            match canonical(name).as_str() {
                // Only the first Host counts; what remains in Go's header map is not written.
                "Host" => host = host.or(Some(value.clone()).filter(|text| !text.is_empty())),
                "Content-Length" | "Transfer-Encoding" | "Trailer" => {}
                name => sorted.push((name.to_owned(), value.clone())),
            }
        }
        let has = |list: &[(String, String)], name| list.iter().any(|(key, _)| key == name);
        if !has(&sorted, "User-Agent") {
            let agent = match client {
                Client::Probe => "kube-probe/1.36",
                Client::Hook => "kube-lifecycle/1.36",
            };
            sorted.push(("User-Agent".to_owned(), agent.to_owned()));
        }
        if !has(&sorted, "Accept") {
            sorted.push(("Accept".to_owned(), "*/*".to_owned()));
        } else if sorted
            .iter()
            .find(|(key, _)| key == "Accept")
            .is_some_and(|(_, v)| v.is_empty())
        {
            sorted.retain(|(key, _)| key != "Accept");
        }
        // The sort is stable, so that several values of one name keep their order.
        sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self { host, sorted }
    }
}

fn set(headers: &mut Vec<(String, String)>, name: &str, value: &str) {
    headers.retain(|(key, _)| key != name);
    headers.push((name.to_owned(), value.to_owned()));
    headers.sort_by(|(a, _), (b, _)| a.cmp(b));
}

/// Go's canonical form: `x-custom` is `X-Custom`.
fn canonical(name: &str) -> String {
    name.split('-')
        .map(|part| {
            let mut letters = part.chars();
            match letters.next() {
                Some(first) => {
                    first.to_ascii_uppercase().to_string() + &letters.as_str().to_ascii_lowercase()
                }
                None => String::new(),
            }
        })
        .collect::<Vec<_>>()
        .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    }

    #[test]
    fn headers_get_the_kubelets_defaults_in_gos_order() {
        let headers = Headers::new(Client::Probe, &pairs(&[("x-b", "2"), ("X-A", "1")]));
        let expected = [
            ("Accept", "*/*"),
            ("User-Agent", "kube-probe/1.36"),
            ("X-A", "1"),
            ("X-B", "2"),
        ];
        assert_eq!(headers.sorted, pairs(&expected));
        assert_eq!(headers.host, None);
    }

    #[test]
    fn an_empty_accept_removes_it_and_the_first_host_wins() {
        let declared = pairs(&[("accept", ""), ("host", "a.example"), ("Host", "b.example")]);
        let headers = Headers::new(Client::Probe, &declared);
        assert_eq!(headers.sorted, pairs(&[("User-Agent", "kube-probe/1.36")]));
        assert_eq!(headers.host.as_deref(), Some("a.example"));
    }

    #[test]
    fn a_path_may_lack_its_slash_and_hold_a_query() -> Result<()> {
        let probe = Probe::http([10, 0, 0, 1], 8080, "");
        let url = first_url(&probe, Scheme::Http, "healthz?deep=1#part")?;
        let target = &url[Position::BeforePath..Position::AfterQuery];
        assert_eq!(target, "/healthz?deep=1");
        Ok(())
    }
}
