//! gRPC probes (kubernetes pkg/probe/grpc/grpc.go with grpc-go): HTTP/2 without TLS, one health
//! check. grpc-go waits for a connection that works, dialling again after a second, until the
//! probe's time is up; a closed port therefore takes the whole timeout.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Dialer, Outcome, Probe, ProbeResult};
use crate::pace;

const BACKOFF: Duration = Duration::from_secs(1);
const USER_AGENT: &str = "kube-probe/1.36 grpc-go/1.72.2";

/// The gRPC status codes that the kubelet distinguishes.
const DEADLINE_EXCEEDED: &str = "4";
const UNIMPLEMENTED: &str = "12";

/// One `grpc` probe.
pub(super) async fn probe(probe: &Probe, dialer: Dialer, service: &str) -> ProbeResult {
    let timeout = probe
        .timeout
        .unwrap_or(pace::stretch(Duration::from_secs(1)));
    let deadline = Instant::now() + timeout;
    let begun = Instant::now();
    let mut connected = false;
    let mut peer = None;
    let mut attempts = Vec::new();
    let work = async {
        loop {
            attempts.push(format!("connecting after {:?}", begun.elapsed()));
            let connection = dialer.connect(probe, probe.port).await;
            if let Ok(stream) = connection {
                peer = stream.peer_addr().ok();
                attempts.push(format!(
                    "connected from {:?} after {:?}",
                    stream.local_addr(),
                    begun.elapsed()
                ));
                let heard = Arc::new(AtomicBool::new(false));
                let stream = Watched {
                    stream,
                    heard: Arc::clone(&heard),
                };
                let checked = check(stream, probe, service, deadline).await;
                // The connection counts as established only after the server's first frame.
                if checked.is_ok() || heard.load(Ordering::Relaxed) {
                    connected = true;
                    return checked;
                }
                attempts.push(format!("{checked:?} after {:?}", begun.elapsed()));
            } else {
                attempts.push(format!("refused after {:?}", begun.elapsed()));
            }
            sleep(BACKOFF).await;
        }
    };
    let checked = timeout_at(deadline, work).await;
    let mut result = match checked {
        Ok(Ok(message)) if message == "service healthy" => {
            ProbeResult::new(Outcome::Success, message)
        }
        Ok(Ok(message)) => ProbeResult::failure(message),
        Ok(Err(_)) => ProbeResult::failure("error: health rpc probe failed"),
        Err(_) if connected => ProbeResult::failure(format!(
            "timeout: health rpc did not complete within {timeout:?}"
        )),
        Err(_) => ProbeResult::failure(format!(
            "timeout: failed to connect service \"{}:{}\" within {timeout:?}: context deadline \
             exceeded ({})",
            probe.ip,
            probe.port,
            attempts.join(", ")
        )),
    };
    result.peer = peer;
    result
}

/// Makes one Check call; returns the kubelet's message.
async fn check(stream: Watched, probe: &Probe, service: &str, deadline: Instant) -> Result<String> {
    let (sender, connection) = h2::client::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let answer = call(sender, probe, service, deadline).await;
    driver.abort();
    answer
}

async fn call(
    sender: h2::client::SendRequest<Bytes>,
    probe: &Probe,
    service: &str,
    deadline: Instant,
) -> Result<String> {
    let left = deadline
        .saturating_duration_since(Instant::now())
        .as_micros();
    let authority = std::net::SocketAddr::new(probe.ip, probe.port);
    let request = http::Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("user-agent", USER_AGENT)
        .header("te", "trailers")
        .header("grpc-timeout", format!("{left}u"))
        .body(())?;
    let mut sender = sender.ready().await?;
    let (response, mut body) = sender.send_request(request, false)?;
    body.send_data(encode(service)?, true)?;
    let (parts, mut stream) = response.await?.into_parts();
    let mut message = BytesMut::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        message.extend_from_slice(&data);
    }
    let trailers = stream.trailers().await?.unwrap_or_default();
    let status = trailers
        .get("grpc-status")
        .or_else(|| parts.headers.get("grpc-status"))
        .context("the response has no grpc-status")?;
    match status.to_str()? {
        "0" => match message.as_ref() {
            // One uncompressed message of two bytes: field 1, an enumeration.
            [0, 0, 0, 0, 2, 8, 1] => Ok("service healthy".to_owned()),
            [0, 0, 0, 0, 2, 8, 2] => {
                Ok("service unhealthy (responded with \"NOT_SERVING\")".to_owned())
            }
            _ => Ok("service unhealthy (responded with \"UNKNOWN\")".to_owned()),
        },
        UNIMPLEMENTED => Ok(
            "error: this server does not implement the grpc health protocol \
                             (grpc.health.v1.Health)"
                .to_owned(),
        ),
        DEADLINE_EXCEEDED => Ok("timeout: health rpc did not complete".to_owned()),
        code => bail!("grpc status {code}"),
    }
}

/// A HealthCheckRequest in its frame: field 1, a string.
fn encode(service: &str) -> Result<Bytes> {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        let length = u8::try_from(service.len())
            .ok()
            .filter(|length| *length < 128);
        message.put_u8(0x0a);
        message.put_u8(length.context("a service name of more than 127 bytes")?);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len())?);
    frame.put(message);
    Ok(frame.freeze())
}

/// Records whether the server has sent anything.
struct Watched {
    stream: TcpStream,
    heard: Arc<AtomicBool>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.heard.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
