//! The admin server: health, readiness, metrics and state, over TCP for the cluster and over a Unix
//! socket for the command line on this node.
//!
//! One request per connection, with a deadline, and a limited number of connections, of which a new one
//! displaces the oldest: a slow client delays no other client.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep_until;

use super::admin_socket::{self, SocketFile};
use super::rendering::Rendering;
use super::turns::Turns;
use status_view::advice::Advice;
use status_view::history::PodHistory;
use status_view::status::Status;
use support::exposition::Format;
use support::listen;
use support::missing::{Missing, Part};
use support::readiness::Readiness;

/// Maximum time for a client to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum duration of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of connections on each listener; another one closes the oldest.
const MAX_CONNECTIONS: usize = 64;
/// Maximum time for requests in progress at shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Interval between attempts to accept while no descriptors are free.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Interval between attempts to listen after a failure.
const BIND_RETRY: Duration = Duration::from_secs(2);
/// The same interval while the previous daemon has the port: it ends soon after this one is ready.
const TAKE_OVER: Duration = Duration::from_millis(200);
const BACKLOG: i32 = 128;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const ONLY_LOCAL: &str = "allowed only from this node's loopback\n";

/// The history of the pod with this namespace and name.
pub type Explain = Box<dyn Fn(&str, &str) -> Option<PodHistory> + Send + Sync>;

/// The data that the admin server serves.
pub struct Admin {
    /// Served at `/metrics`: over TCP values at most a second old, over the Unix socket the current ones.
    pub metrics: Rendering,
    /// Served at `/readyz`.
    pub readiness: Readiness,
    /// Served at `/healthz`: whether the handler is alive, or why it is not.
    pub alive: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Served at `/status` and `/debug/status`; called for each request.
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
    /// Served at `/explain/NAMESPACE/POD`: the history of that pod, if there is one.
    pub explain: Explain,
    /// Served at `/advice`; called for each request.
    pub advice: Box<dyn Fn() -> Vec<Advice> + Send + Sync>,
    /// Served at `/debug/config`; called for each request.
    pub config_json: Box<dyn Fn() -> String + Send + Sync>,
    /// The rate limit for metrics over TCP.
    pub turns: Turns,
}

/// An admin server, which retries a listener that fails.
pub struct BoundAdmin {
    admin: Arc<Admin>,
    /// The address to listen on over TCP.
    address: Option<SocketAddr>,
    tcp: Option<(TcpListener, SocketAddr)>,
    path: PathBuf,
    /// The socket's file is removed when dropped.
    unix: Option<(UnixListener, SocketFile)>,
    missing: Missing,
}

/// The origin of a request.
#[derive(Clone, Copy)]
enum Peer {
    /// Over the Unix socket: root on this node.
    Root,
    /// Over TCP from loopback: any process on this node.
    Local(IpAddr),
    /// From another machine: gets no more about pods than the metrics contain.
    Remote(IpAddr),
}

/// A listener that also returns the origin of its clients.
trait Accept: Send + Sync {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept_peer(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

// === impl Accept ===

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept_peer(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, peer) = self.accept().await?;
        Ok((stream, Peer::from(peer.ip())))
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept_peer(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = self.accept().await?;
        Ok((stream, Peer::Root))
    }
}

// === impl Peer ===

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        if address.is_loopback() {
            Self::Local(address)
        } else {
            Self::Remote(address)
        }
    }
}

// === impl Admin ===

impl Admin {
    /// Listens on `tcp` (None: not over TCP; port 0: any free port), and on the Unix socket at `socket`. If another daemon
    /// has the port, as during an upgrade, this one takes it over when it is ready. Must be called within a tokio runtime. If another
    /// process has the address or the socket, or it can't be used, `missing` shows it, and [`BoundAdmin::serve`]
    /// retries: any process may bind the port, and probes need neither.
    pub fn bind(self, tcp: Option<SocketAddr>, socket: &Path, missing: Missing) -> BoundAdmin {
        let unix = noted(&missing, Part::AdminSocket, admin_socket::bind(socket));
        let readiness = self.readiness.clone();
        BoundAdmin {
            admin: Arc::new(self),
            address: tcp,
            tcp: tcp.and_then(|address| {
                let is_ready = readiness.pending().is_empty();
                noted(&missing, Part::AdminPort, bind_tcp(address, is_ready)).flatten()
            }),
            path: socket.to_owned(),
            unix,
            missing,
        }
    }

    /// `metrics_format` is that of an answer to `/metrics`.
    async fn respond(
        &self,
        method: &Method,
        path: &str,
        metrics_format: Format,
        peer: Peer,
    ) -> Response<Full<Bytes>> {
        if let ("/metrics", &Method::GET, Peer::Local(address) | Peer::Remote(address)) =
            (path, method, peer)
        {
            // Sending the text costs about as much as rendering it, so requests are limited too.
            let Some(turn) = self.turns.take(address) else {
                return reply(StatusCode::TOO_MANY_REQUESTS, TEXT, "too many requests\n");
            };
            sleep_until(turn).await;
            return metrics(self.metrics.recent(metrics_format), metrics_format);
        }
        if let ("/metrics", &Method::GET) = (path, method) {
            return metrics(self.metrics.now(metrics_format), metrics_format);
        }
        if let Some(pod) = path.strip_prefix("/explain/") {
            return match (peer, method) {
                (Peer::Remote(_), _) => reply(StatusCode::FORBIDDEN, TEXT, ONLY_LOCAL),
                (_, &Method::GET) => self.explain(pod),
                _ => only_get(),
            };
        }
        let answer: fn(&Self) -> Response<Full<Bytes>> = match (path, peer) {
            ("/healthz", _) => Self::healthz,
            ("/readyz", _) => Self::readyz,
            ("/metrics", _) => return only_get(),
            ("/status" | "/debug/status", Peer::Root | Peer::Local(_)) => Self::status,
            ("/advice", Peer::Root | Peer::Local(_)) => |admin| json(&(admin.advice)()),
            ("/debug/config", Peer::Root | Peer::Local(_)) => {
                |admin| reply(StatusCode::OK, JSON, (admin.config_json)())
            }
            ("/status" | "/advice" | "/debug/status" | "/debug/config", Peer::Remote(_)) => {
                |_| reply(StatusCode::FORBIDDEN, TEXT, ONLY_LOCAL)
            }
            _ => return reply(StatusCode::NOT_FOUND, TEXT, "not found\n"),
        };
        if method == Method::GET {
            return answer(self);
        }
        only_get()
    }

    fn healthz(&self) -> Response<Full<Bytes>> {
        match (self.alive)() {
            Ok(()) => reply(StatusCode::OK, TEXT, "ok\n"),
            Err(why) => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
        }
    }

    fn readyz(&self) -> Response<Full<Bytes>> {
        let mut pending = self.readiness.pending();
        pending.extend((self.alive)().err());
        if pending.is_empty() {
            return reply(StatusCode::OK, TEXT, "ready\n");
        }
        let text = format!("not ready, waiting for:\n{}\n", pending.join("\n"));
        reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
    }

    /// `pod` is NAMESPACE/POD.
    fn explain(&self, pod: &str) -> Response<Full<Bytes>> {
        let history = pod
            .split_once('/')
            .and_then(|(namespace, name)| (self.explain)(namespace, name));
        match history {
            Some(history) => json(&history),
            None => {
                let text = format!(
                    "the daemon on this node has no pod {pod}: is it on another node? 'probe-handler status' lists the pods \
                     of this one\n"
                );
                reply(StatusCode::NOT_FOUND, TEXT, text)
            }
        }
    }

    fn status(&self) -> Response<Full<Bytes>> {
        json(&(self.status)())
    }
}

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(json) => reply(StatusCode::OK, JSON, json),
        Err(error) => internal(&error),
    }
}

// === impl BoundAdmin ===

impl BoundAdmin {
    /// The TCP address of the listener, with its actual port.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(|(_, address)| *address)
    }

    /// The path of the Unix socket.
    pub fn socket_path(&self) -> &Path {
        &self.path
    }

    /// Serves until `shutdown` resolves, then finishes the requests in progress and removes the Unix
    /// socket's file, if it is still this daemon's.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Self {
            admin,
            address,
            tcp,
            path,
            unix,
            missing,
        } = self;
        let (stop, stopped) = watch::channel(());
        let over_tcp = async {
            let Some(address) = address else { return };
            let again = || {
                let is_ready = admin.readiness.pending().is_empty();
                noted(&missing, Part::AdminPort, bind_tcp(address, is_ready)).flatten()
            };
            if let Some((listener, _)) = until_bound(tcp, TAKE_OVER, again, stopped.clone()).await {
                accept_loop(Arc::clone(&admin), listener, stopped.clone()).await;
            }
        };
        let over_unix = async {
            let again = || noted(&missing, Part::AdminSocket, admin_socket::bind(&path));
            let (listener, file) = until_bound(unix, BIND_RETRY, again, stopped.clone()).await?;
            accept_loop(Arc::clone(&admin), listener, stopped.clone()).await;
            Some(file)
        };
        let stopping = async {
            shutdown.await;
            drop(stop);
        };
        let ((), file, ()) = tokio::join!(over_tcp, over_unix, stopping);
        drop(file);
    }
}

/// The bound listener; if binding failed, records the error in `missing`.
fn noted<T>(missing: &Missing, part: Part, bound: anyhow::Result<T>) -> Option<T> {
    match bound {
        Ok(bound) => {
            missing.clear(part);
            Some(bound)
        }
        Err(error) => {
            missing.note(part, &format!("{error:#}"));
            None
        }
    }
}

/// Returns `bound`, or calls `again` at this interval until it returns a value; `None` if `stopped`'s sender is dropped
/// first.
async fn until_bound<T>(
    mut bound: Option<T>,
    interval: Duration,
    again: impl Fn() -> Option<T>,
    mut stopped: watch::Receiver<()>,
) -> Option<T> {
    while bound.is_none() {
        tokio::select! {
            () = tokio::time::sleep(interval) => bound = again(),
            _ = stopped.changed() => return None,
        }
    }
    bound
}

/// Serves each connection in a separate task until `stopped`'s sender is dropped.
async fn accept_loop<L: Accept>(admin: Arc<Admin>, listener: L, mut stopped: watch::Receiver<()>) {
    let mut connections = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept_peer() => accepted,
            Some(_) = connections.join_next() => continue,
            _ = stopped.changed() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                oldest_first.retain(|connection| !connection.is_finished());
                if oldest_first.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = oldest_first.pop_front()
                {
                    oldest.abort();
                }
                let connection = serve_connection(Arc::clone(&admin), stream, peer);
                oldest_first.push_back(connections.spawn(connection));
            }
            Err(error) => {
                tracing::warn!(%error, "the admin server cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    let finish = async { while connections.join_next().await.is_some() {} };
    // Dropping the set aborts the requests that are not finished by then.
    let _ = tokio::time::timeout(SHUTDOWN_GRACE, finish).await;
}

async fn serve_connection<S>(admin: Arc<Admin>, stream: S, peer: Peer)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let admin = Arc::clone(&admin);
        async move {
            let accept = request.headers().get(ACCEPT);
            let format = Format::accepted(accept.and_then(|value| value.to_str().ok()));
            let path = request.uri().path();
            let response = admin.respond(request.method(), path, format, peer);
            Ok::<_, Infallible>(response.await)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an admin client's connection failed"),
        Err(_) => tracing::debug!("an admin client took too long: closing its connection"),
    }
}

/// Listens on `address`. Returns `None` if another daemon has it and this one is not ready.
fn bind_tcp(
    address: SocketAddr,
    is_ready: bool,
) -> anyhow::Result<Option<(TcpListener, SocketAddr)>> {
    let listen = || -> io::Result<Option<(TcpListener, SocketAddr)>> {
        let is_shared = listen::is_shared(address)?;
        if is_shared && !is_ready {
            return Ok(None);
        }
        let listener = listen::tcp(address, listen::Share::Upgrade, BACKLOG)?;
        // Otherwise each of the two daemons would answer some of the scrapes, with different counters.
        if is_shared && let Err(error) = listen::prefer(&listener) {
            tracing::warn!(%error, "the previous daemon still answers some of the requests at the admin port");
        }
        let listener = TcpListener::from_std(listener)?;
        let real = listener.local_addr()?;
        Ok(Some((listener, real)))
    };
    listen().with_context(|| {
        format!(
            "cannot serve metrics and health on {address}; if another program uses that port, \
             set --admin-addr to another one (or none)"
        )
    })
}

fn reply(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let _ = response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

fn only_get() -> Response<Full<Bytes>> {
    let text = "only GET is allowed\n";
    let mut refusal = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
    let _ = refusal
        .headers_mut()
        .insert(ALLOW, http::HeaderValue::from_static("GET"));
    refusal
}

fn metrics(text: Result<Bytes, std::fmt::Error>, format: Format) -> Response<Full<Bytes>> {
    match text {
        Ok(text) => reply(StatusCode::OK, format.content_type(), text),
        Err(error) => internal(&error),
    }
}

fn internal(error: &dyn std::fmt::Display) -> Response<Full<Bytes>> {
    let text = format!("{error}\n");
    reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, text)
}

#[cfg(test)]
mod tests;
