//! One HTTP check as the kubelet's prober makes it (kubernetes pkg/probe/http/http.go).

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::dial::{Dial, dial, send_at_once};
use super::http1::{ResponseError, ResponseHead, ResponseReader};
use super::redirect::{Hop, REQUESTS_LIMIT, Step};
use super::request::Request;
use super::tls::{self, Failure};
use super::verdict::Reason;
use super::{BODY_LATE, Finding, http2, in_time};
use model::Scheme;

/// One HTTP check.
pub struct HttpCheck<'a> {
    /// Dials the pod.
    pub dialer: &'a dyn Dial,
    /// The app's address: pod IP and the app's port.
    pub address: SocketAddr,
    /// Whether to use TLS.
    pub scheme: Scheme,
    /// The request head for the app: a GET, empty line included. Over HTTP/1 it is sent unchanged.
    pub head: &'a [u8],
    /// Whether this is a lifecycle hook. The kubelet reads its body too, but accepts an incomplete one.
    pub hook: bool,
    /// When a body must be complete. The caller bounds the time until there is a status.
    pub deadline: Option<Instant>,
}

impl HttpCheck<'_> {
    /// Executes the check. `connection` is a connection to `address`, or the error of the dial. May leave the
    /// last connection used in `spent`, because closing it can take longer than answering the kubelet, which
    /// should not wait for that. Has a timeout of its own for the body only: drop it to stop it earlier.
    pub async fn run(
        self,
        connection: io::Result<TcpStream>,
        spent: &mut Option<TcpStream>,
    ) -> Finding {
        let head = match self.chain(connection, spent).await {
            // The kubelet tries a hook again without TLS (kubernetes pkg/kubelet/lifecycle/handlers.go,
            // `isHTTPResponseError`).
            Err(Failure::Plaintext(finding)) if self.hook => match parse(self.head) {
                Ok(request) => request.without_authorization(),
                Err(_) => return finding,
            },
            Ok(finding) => return finding,
            Err(failure) => return failure.into_finding(),
        };
        let plain = HttpCheck {
            scheme: Scheme::Http,
            head: &head,
            ..self
        };
        let connection = dial(self.dialer, self.address).await;
        let found = Box::pin(plain.chain(connection, spent)).await;
        found.unwrap_or_else(Failure::into_finding)
    }

    /// Makes the request, and one more for each redirect that the kubelet would follow.
    async fn chain(
        &self,
        mut connection: io::Result<TcpStream>,
        spent: &mut Option<TcpStream>,
    ) -> Result<Finding, Failure> {
        let mut scheme = self.scheme;
        let mut hop: Option<Box<Hop>> = None;
        let mut head = Vec::new();
        for _ in 0..REQUESTS_LIMIT {
            let mut stream = connection.map_err(|error| Finding::dial(&error))?;
            let bytes = if hop.is_some() { &head } else { self.head };
            let response = match scheme {
                Scheme::Http => {
                    let rest = send_at_once(&stream, bytes);
                    let response = self.http1(&mut stream, rest).await?;
                    *spent = Some(stream);
                    response
                }
                // Boxed, because TLS and HTTP/2 need many times the state of a plain check, which would contain it.
                Scheme::Https => Box::pin(self.https(stream, bytes)).await?,
            };
            let location = match &response.location {
                Some(location) if response.leads_on() => location,
                _ => return Ok(Finding::answered(response.status)),
            };
            let request = parse(self.head)?;
            let from = match hop {
                Some(hop) => hop,
                None => Box::new(self.first_hop(&request)?),
            };
            let (next, referer) = match from.step(self.address.ip(), location) {
                Step::Follow(next, referer) => (next, referer),
                Step::Elsewhere => {
                    // The kubelet gets the status without a Location, so it records the same warning as without the
                    // daemon.
                    return Ok(Finding {
                        detail: "redirect to another host, which the kubelet does not follow"
                            .to_owned(),
                        ..Finding::answered(response.status)
                    });
                }
                Step::Invalid(what) => {
                    return Err(Finding::without_answer(Reason::BadResponse, what).into());
                }
            };
            head = request.redirected(&next, referer.as_deref());
            scheme = next.scheme();
            let address = SocketAddr::new(self.address.ip(), next.port());
            connection = dial(self.dialer, address).await;
            hop = Some(next);
        }
        Err(Finding::without_answer(
            Reason::TooManyRedirects,
            format!("stopped after {REQUESTS_LIMIT} redirects"),
        )
        .into())
    }

    fn first_hop(&self, request: &Request<'_>) -> Result<Hop, Finding> {
        Hop::first(
            self.scheme,
            self.address,
            request.target,
            request.header("host"),
        )
        .ok_or_else(|| {
            Finding::without_answer(
                Reason::BadResponse,
                "redirect from a request target that is not a valid URL",
            )
        })
    }

    /// Makes one request over TLS, in the HTTP version that the app chooses.
    async fn https(&self, stream: TcpStream, head: &[u8]) -> Result<ResponseHead, Failure> {
        let secured = tls::secure(stream, self.address.ip()).await?;
        let answer = if secured.http2 {
            let authority = self.address.to_string();
            let (hook, deadline) = (self.hook, self.deadline);
            http2::get(secured.stream, &parse(head)?, &authority, hook, deadline).await?
        } else {
            self.http1(secured.stream, head).await?
        };
        Ok(answer)
    }

    /// Makes one request over HTTP/1, of which `rest` is not sent yet.
    async fn http1(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        rest: &[u8],
    ) -> Result<ResponseHead, Finding> {
        // An app may answer and close the connection before it has read the whole request. So a failed
        // write matters only if there is no answer.
        let written = stream.write_all(rest).await;
        let mut reader = ResponseReader::default();
        let mut buffer = Vec::with_capacity(4096);
        let failure = loop {
            buffer.clear();
            let read = stream.read_buf(&mut buffer);
            let read = match reader.head() {
                Some(head) => match in_time(self.deadline, read).await {
                    Some(read) => read,
                    None => return Err(Finding::body_incomplete(head.status, BODY_LATE)),
                },
                None => read.await,
            };
            match read {
                Ok(0) => match reader.end() {
                    Ok(()) => break None,
                    Err(error) => break Some(closed(error.to_string(), &written)),
                },
                Ok(_) => match reader.feed(&buffer) {
                    Ok(true) => break None,
                    Ok(false) => {}
                    Err(error) => break Some(rejected(error)),
                },
                // Like Go, accepts a TLS stream that ends without a close_notify.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => match reader.end() {
                    Ok(()) => break None,
                    Err(error) => break Some(closed(error.to_string(), &written)),
                },
                Err(error) => break Some(closed(error.to_string(), &written)),
            }
            let is_enough =
                |head: &ResponseHead| head.leads_on() || self.hook && head.has_long_body;
            if reader.head().is_some_and(is_enough) {
                break None;
            }
        };
        match (reader.into_head(), failure) {
            (Some(head), None) => Ok(head),
            // The body of a redirect is ignored, as in Go's client.
            (Some(head), Some(_)) if self.hook || head.leads_on() => Ok(head),
            (Some(head), Some(failure)) => {
                Err(Finding::body_incomplete(head.status, failure.detail))
            }
            (None, Some(failure)) => Err(failure),
            (None, None) => Err(rejected(ResponseError::CutShort)),
        }
    }
}

fn parse(head: &[u8]) -> Result<Request<'_>, Finding> {
    match Request::parse(head) {
        Ok(Some(request)) => Ok(request),
        _ => Err(Finding::without_answer(
            Reason::BadResponse,
            "the request head is malformed",
        )),
    }
}

fn closed(error: String, written: &io::Result<()>) -> Finding {
    let detail = match written {
        Ok(()) => error,
        Err(write) => format!("{error}; cannot send the request: {write}"),
    };
    Finding::without_answer(Reason::ConnectionClosed, detail)
}

fn rejected(error: ResponseError) -> Finding {
    let reason = match error {
        ResponseError::CutShort => Reason::ConnectionClosed,
        ResponseError::Malformed(_) | ResponseError::HeadTooLarge => Reason::BadResponse,
    };
    Finding::without_answer(reason, error.to_string())
}
