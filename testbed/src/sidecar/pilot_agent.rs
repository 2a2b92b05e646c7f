//! pilot-agent's status port 15020 (istio pilot/cmd/pilot-agent/status/server.go), as far as probes
//! use it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kubelet::{Action, Dialer, Outcome, Probe, ProbeResult, execute};

const HEAD_LIMIT: usize = 64 << 10;

/// The agent of one pod.
pub(super) struct PilotAgent {
    app_ip: IpAddr,
    probers: BTreeMap<String, Value>,
}

impl PilotAgent {
    /// For a pod whose apps it probes at `app_ip`.
    pub(super) const fn new(app_ip: IpAddr, probers: BTreeMap<String, Value>) -> Self {
        Self { app_ip, probers }
    }

    /// Answers one request, and counts it in `asked`.
    pub(super) async fn serve(
        self: Arc<Self>,
        mut stream: TcpStream,
        asked: impl FnOnce(),
    ) -> Result<()> {
        let mut head = Vec::new();
        while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            if head.len() > HEAD_LIMIT || stream.read_buf(&mut head).await? == 0 {
                bail!("no request");
            }
        }
        asked();
        let head = String::from_utf8_lossy(&head);
        let target = head.split(' ').nth(1).unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default();
        let (status, body) = match path {
            "/healthz/ready" => (200, String::new()),
            "/stats/prometheus" | "/metrics" => (200, "istio_agent_up 1\n".to_owned()),
            _ if path.starts_with("/app-health/") || path.starts_with("/app-lifecycle/") => {
                self.app_probe(path, &head).await
            }
            _ => (404, "404 page not found\n".to_owned()),
        };
        let answer = format!(
            "HTTP/1.1 {status} Agent\r\nX-Pilot-Agent: testbed\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await.context("closing")
    }

    async fn app_probe(&self, path: &str, head: &str) -> (u16, String) {
        let Some(prober) = self.probers.get(path) else {
            return (400, format!("Prober does not exists url {path}\n"));
        };
        let probe = match self.probe(prober, head) {
            Ok(probe) => probe,
            Err(error) => return (500, format!("{error:#}\n")),
        };
        let source: IpAddr = match probe.ip {
            IpAddr::V4(_) => Ipv4Addr::new(127, 0, 0, 6).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into(),
        };
        let result = execute(
            &probe,
            Dialer {
                source: Some(source),
            },
        )
        .await;
        status_of(&probe, result)
    }

    /// The original probe of one entry of `ISTIO_KUBE_APP_PROBERS`.
    fn probe(&self, prober: &Value, head: &str) -> Result<Probe> {
        let port = |action: &Value| {
            let port = action.get("port").and_then(Value::as_u64);
            port.and_then(|port| u16::try_from(port).ok())
                .context("the prober has no port")
        };
        let text = |action: &Value, name: &str| {
            action
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let mut probe = if let Some(action) = prober.get("httpGet") {
            let (port, path) = (port(action)?, text(action, "path"));
            let mut probe = match text(action, "scheme").as_str() {
                "HTTPS" => Probe::https(self.app_ip, port, &path),
                _ => Probe::http(self.app_ip, port, &path),
            };
            // Forwards the kubelet's headers, with the app's port in Host.
            for (name, value) in head
                .lines()
                .skip(1)
                .filter_map(|line| line.split_once(": "))
            {
                let value = match name.eq_ignore_ascii_case("host") {
                    true => value.replace(":15020", &format!(":{port}")),
                    false => value.to_owned(),
                };
                if !name.eq_ignore_ascii_case("connection") {
                    probe = probe.header(name, &value);
                }
            }
            probe
        } else if let Some(action) = prober.get("tcpSocket") {
            Probe::tcp(self.app_ip, port(action)?)
        } else if let Some(action) = prober.get("grpc") {
            Probe::grpc(self.app_ip, port(action)?, &text(action, "service"))
        } else {
            bail!("the prober has no action");
        };
        if let Some(seconds) = prober.get("timeoutSeconds").and_then(Value::as_u64) {
            probe.timeout = Some(Duration::from_secs(seconds));
        }
        Ok(probe)
    }
}

fn status_of(probe: &Probe, result: ProbeResult) -> (u16, String) {
    match (&probe.action, result.status, result.outcome) {
        (Action::Http { .. }, Some(300..400), _) => (200, result.body),
        (Action::Http { .. }, Some(status), _) => (status, result.body),
        (_, _, Outcome::Success) => (200, String::new()),
        _ => (500, result.message),
    }
}
