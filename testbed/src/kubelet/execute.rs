//! Executes a probe: the parts that all kinds share.

use std::time::{Duration, Instant};

use super::{Action, Dialer, Outcome, Probe, ProbeResult, grpc, http, raw};

/// kubernetes pkg/kubelet/prober/prober.go, maxProbeRetries.
const ATTEMPTS: u32 = 3;

/// The result of one attempt.
pub(super) enum Attempt {
    /// The prober has a result.
    Done(ProbeResult),
    /// The prober returned an error: the kubelet tries again at once.
    Error(ProbeResult),
}

/// Makes one probe as the kubelet does.
pub(crate) async fn execute(probe: &Probe, dialer: Dialer) -> ProbeResult {
    let begun = Instant::now();
    let mut attempts = 0;
    let mut result = loop {
        attempts += 1;
        match attempt(probe, dialer).await {
            Attempt::Done(result) => break result,
            Attempt::Error(result) if attempts == ATTEMPTS => {
                break ProbeResult {
                    outcome: Outcome::Discarded,
                    ..result
                };
            }
            Attempt::Error(_) => {}
        }
    };
    result.latency = begun.elapsed();
    result.attempts = attempts;
    result
}

async fn attempt(probe: &Probe, dialer: Dialer) -> Attempt {
    match &probe.action {
        Action::Http {
            scheme,
            path,
            headers,
        } => http::probe(probe, dialer, *scheme, path, headers).await,
        Action::Hook {
            scheme,
            path,
            headers,
        } => Attempt::Done(http::hook(probe, dialer, *scheme, path, headers).await),
        Action::Tcp => Attempt::Done(tcp(probe, dialer).await),
        Action::Grpc { service } => Attempt::Done(grpc::probe(probe, dialer, service).await),
        Action::Raw { send, finish } => {
            Attempt::Done(raw::exchange(probe, dialer, &[send], Duration::ZERO, *finish).await)
        }
        Action::Halves { first, rest, pause } => Attempt::Done(match rest {
            Some(rest) => raw::exchange(probe, dialer, &[first, rest], *pause, true).await,
            None => raw::reset(probe, dialer, first, *pause).await,
        }),
        Action::Datagram { send } => Attempt::Done(raw::datagram(probe, send).await),
    }
}

/// Success is that `connect` succeeds (kubernetes pkg/probe/tcp/tcp.go).
async fn tcp(probe: &Probe, dialer: Dialer) -> ProbeResult {
    let dial = dialer.connect(probe, probe.port);
    let connected = match probe.timeout {
        Some(limit) => tokio::time::timeout(limit, dial).await.ok(),
        None => Some(dial.await),
    };
    match connected {
        Some(Ok(stream)) => {
            let mut result = ProbeResult::new(super::Outcome::Success, "");
            result.peer = stream.peer_addr().ok();
            result
        }
        Some(Err(error)) => {
            ProbeResult::failure(format!("dial tcp {}:{}: {error}", probe.ip, probe.port))
        }
        None => ProbeResult::failure(format!("dial tcp {}:{}: i/o timeout", probe.ip, probe.port)),
    }
}
