//! Serves one connection, from its handshake to its end.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::connections::{Activity, Place};
use super::{Phase, Shared, reached};

/// Largest head of a request, in bytes.
const HEAD_MAX: u32 = 16 << 10;
/// Concurrent requests on one HTTP/2 connection; Go's client opens another connection for more.
const STREAMS: u32 = 100;
/// What a client may send on one HTTP/2 stream, and on the connection, before we have read it, in bytes.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Interval of HTTP/2 keepalive pings, and how long to wait for the answer.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may take to close.
const CLOSING: Duration = Duration::from_secs(2);

/// Serves `stream` until it ends, has to close, or exceeds a limit.
pub(super) async fn serve(
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
    stream: TcpStream,
    phase: watch::Receiver<Phase>,
) {
    let place = shared.connections.enter();
    let Some(tls) = tls else {
        return talk(shared, place, stream, phase).await;
    };
    let handshake = timeout(shared.limits.handshake, tls.accept(stream));
    let failure = tokio::select! {
        done = handshake => match done {
            Ok(Ok(stream)) => return talk(shared, place, stream, phase).await,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it did not complete in time".to_owned(),
        },
        () = place.activity.closed() => "the connection was closed to make room for another".to_owned(),
    };
    shared.routes.handshake_failed(&failure);
}

async fn talk<S>(shared: Arc<Shared>, place: Place, stream: S, mut phase: watch::Receiver<Phase>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = shared.limits.clone();
    let activity = Arc::clone(&place.activity);
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = Arc::clone(&shared);
        let activity = Arc::clone(&activity);
        let busy = activity.begin();
        async move {
            let response = shared.routes.answer(request, &shared.limits).await;
            drop(busy);
            let counted = |bytes| Full::new(shared.answers.hold(bytes, &activity));
            Ok::<_, Infallible>(response.map(counted))
        }
    });
    let builder = builder(limits.idle);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // Connections that exist already are shut down in phase Leaving, those accepted later in phase Ending.
    let mut next_phase = match *phase.borrow() {
        Phase::Serving => Phase::Leaving,
        Phase::Leaving | Phase::Ending => Phase::Ending,
    };
    let mut closing = false;
    let mut deadline = Instant::now() + limits.first_request;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error, "a client's connection failed");
                }
                return;
            }
            () = place.activity.closed() => return,
            () = reached(&mut phase, next_phase), if !closing => {
                connection.as_mut().graceful_shutdown();
                if next_phase == Phase::Leaving {
                    next_phase = Phase::Ending;
                } else {
                    closing = true;
                }
            }
            () = sleep_until(deadline) => match timeouts(&place.activity, limits.idle) {
                Some(later) => deadline = later,
                // A connection without any request is closed without a graceful shutdown.
                None if closing || place.activity.last().is_none() => return,
                None => {
                    connection.as_mut().graceful_shutdown();
                    closing = true;
                    deadline = Instant::now() + CLOSING;
                }
            },
        }
    }
}

/// Until when a connection may stay open; `None`: it has been idle for too long.
fn timeouts(activity: &Activity, idle: Duration) -> Option<Instant> {
    if activity.is_busy() {
        return Some(Instant::now() + idle);
    }
    activity
        .last()
        .map(|last| last + idle)
        .filter(|until| *until > Instant::now())
}

fn builder(idle: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let _ = builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HEAD_MAX as usize);
    let _ = builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_MAX)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    builder
}
