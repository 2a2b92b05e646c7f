//! Raw bytes instead of a probe.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Dialer, Ended, Outcome, Probe, ProbeResult};
use crate::pace;

const LIMIT: usize = 16 << 20;

/// Sends bytes, with a pause between the parts, and collects the answer until the connection ends or the timeout.
pub(super) async fn exchange(
    probe: &Probe,
    dialer: Dialer,
    parts: &[&Vec<u8>],
    pause: Duration,
    finish: bool,
) -> ProbeResult {
    let deadline = deadline(probe);
    let mut stream = match timeout_at(deadline, dialer.connect(probe, probe.port)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let mut result = ProbeResult::failure(error.to_string());
            result.ended = Some(Ended::Refused);
            return result;
        }
        Err(_) => return ProbeResult::failure("no connection within the timeout"),
    };
    let mut result = ProbeResult::new(Outcome::Success, "");
    result.peer = stream.peer_addr().ok();
    let mut received = Vec::new();
    let (mut read, mut write) = stream.split();
    let sent = async {
        for (index, part) in parts.iter().enumerate() {
            if index > 0 {
                sleep(pause).await;
            }
            write.write_all(part).await?;
        }
        match finish {
            true => write.shutdown().await,
            false => Ok(()),
        }
    };
    let answered = async {
        while received.len() < LIMIT && read.read_buf(&mut received).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    let ended = async {
        // The other end's answer shows whether it received everything.
        let (sent, answered) = tokio::join!(sent, answered);
        answered.and(sent)
    };
    result.ended = Some(match timeout_at(deadline, ended).await {
        Err(_) => Ended::Open,
        Ok(Ok(())) => Ended::Closed,
        Ok(Err(error)) => {
            result.message = error.to_string();
            match error.kind() {
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Ended::Reset,
                _ => Ended::Closed,
            }
        }
    });
    result.body = String::from_utf8_lossy(&received).into_owned();
    result
}

/// Sends bytes and resets the connection after a pause, regardless of the answer.
pub(super) async fn reset(
    probe: &Probe,
    dialer: Dialer,
    send: &[u8],
    pause: Duration,
) -> ProbeResult {
    let sent = async {
        let mut stream = dialer.connect(probe, probe.port).await?;
        stream.write_all(send).await?;
        sleep(pause).await;
        stream.set_zero_linger()
    };
    match timeout_at(deadline(probe), sent).await {
        Ok(Ok(())) => ProbeResult::new(Outcome::Success, ""),
        Ok(Err(error)) => ProbeResult::failure(error.to_string()),
        Err(_) => ProbeResult::failure("not sent within the timeout"),
    }
}

fn deadline(probe: &Probe) -> Instant {
    let usual = pace::stretch(Duration::from_secs(1));
    Instant::now() + probe.timeout.unwrap_or(usual)
}

/// Connects a UDP socket and sends one datagram.
pub(super) async fn datagram(probe: &Probe, send: &[u8]) -> ProbeResult {
    let sent = async {
        let any: IpAddr = match probe.ip {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect((probe.ip, probe.port)).await?;
        let _length = socket.send(send).await?;
        socket.peer_addr()
    };
    match sent.await {
        Ok(peer) => {
            let mut result = ProbeResult::new(Outcome::Success, "");
            result.peer = Some(peer);
            result
        }
        Err(error) => ProbeResult::failure(error.to_string()),
    }
}
