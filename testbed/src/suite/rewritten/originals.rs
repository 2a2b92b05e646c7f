//! Rewritten probes whose originals are of every kind and have every outcome.

use std::net::IpAddr;

use serde_json::Value;

use super::super::pod_pair::{grpc_of, http_get, https_get, tcp_socket};
use super::{AGENT, CLOSED, GRPC, HTTP, OPEN, TLS};
use crate::kubelet::Probe;

/// An original probe, and its expected result.
pub(in crate::suite) struct Original {
    pub(in crate::suite) container: &'static str,
    /// `livez` and so on.
    pub(in crate::suite) end: &'static str,
    pub(in crate::suite) action: Value,
    /// The probe as the kubelet would have made it.
    pub(in crate::suite) native: fn(IpAddr) -> Probe,
    pub(in crate::suite) passes: bool,
}

impl Original {
    pub(in crate::suite) fn path(&self) -> String {
        let kind = match self.is_hook() {
            true => "app-lifecycle",
            false => "app-health",
        };
        format!("/{kind}/{}/{}", self.container, self.end)
    }

    pub(in crate::suite) fn is_hook(&self) -> bool {
        matches!(self.end, "prestopz" | "poststartz")
    }

    pub(in crate::suite) fn rewritten(&self, ip: IpAddr) -> Probe {
        match self.is_hook() {
            true => Probe::hook(ip, AGENT, &self.path()),
            false => Probe::http(ip, AGENT, &self.path()),
        }
    }
}

/// All of them.
pub(in crate::suite) fn originals() -> Vec<Original> {
    fn native_https(ip: IpAddr, index: u16) -> Probe {
        Probe::https(ip, TLS + index, "/healthy")
    }
    let row = |container, end, action, native, passes| Original {
        container,
        end,
        action,
        native,
        passes,
    };
    vec![
        row(
            "web",
            "livez",
            http_get(HTTP, "/healthy?deep=1"),
            |ip| Probe::http(ip, HTTP, "/healthy?deep=1"),
            true,
        ),
        row(
            "web",
            "readyz",
            http_get(HTTP, "/failing"),
            |ip| Probe::http(ip, HTTP, "/failing"),
            false,
        ),
        row(
            "web",
            "startupz",
            http_get(HTTP, "/status/418"),
            |ip| Probe::http(ip, HTTP, "/status/418"),
            false,
        ),
        row(
            "web",
            "poststartz",
            http_get(HTTP, "/status/500"),
            |ip| Probe::hook(ip, HTTP, "/status/500"),
            true,
        ),
        row(
            "web",
            "prestopz",
            http_get(CLOSED, "/healthy"),
            |ip| Probe::hook(ip, CLOSED, "/healthy"),
            false,
        ),
        row(
            "tls",
            "livez",
            https_get(TLS, "/healthy"),
            |ip| native_https(ip, 0),
            true,
        ),
        row(
            "tls",
            "readyz",
            https_get(TLS, "/failing"),
            |ip| Probe::https(ip, TLS, "/failing"),
            false,
        ),
        row(
            "tls",
            "startupz",
            https_get(TLS + 1, "/healthy"),
            |ip| native_https(ip, 1),
            true,
        ),
        row(
            "certificates",
            "livez",
            https_get(TLS + 2, "/healthy"),
            |ip| native_https(ip, 2),
            true,
        ),
        row(
            "certificates",
            "readyz",
            https_get(TLS + 3, "/healthy"),
            |ip| native_https(ip, 3),
            true,
        ),
        row(
            "certificates",
            "startupz",
            https_get(HTTP, "/healthy"),
            |ip| Probe::https(ip, HTTP, "/healthy"),
            false,
        ),
        row(
            "db",
            "livez",
            tcp_socket(OPEN),
            |ip| Probe::tcp(ip, OPEN),
            true,
        ),
        row(
            "db",
            "readyz",
            tcp_socket(CLOSED),
            |ip| Probe::tcp(ip, CLOSED),
            false,
        ),
        row(
            "db",
            "startupz",
            http_get(CLOSED, "/healthy"),
            |ip| Probe::http(ip, CLOSED, "/healthy"),
            false,
        ),
        row(
            "api",
            "livez",
            grpc_of(GRPC, "ok"),
            |ip| Probe::grpc(ip, GRPC, "ok"),
            true,
        ),
        row(
            "api",
            "readyz",
            grpc_of(GRPC, "down"),
            |ip| Probe::grpc(ip, GRPC, "down"),
            false,
        ),
        row(
            "api",
            "startupz",
            grpc_of(HTTP, ""),
            |ip| Probe::grpc(ip, HTTP, ""),
            false,
        ),
        row(
            "slow",
            "livez",
            http_get(HTTP, "/slow?ms=500"),
            |ip| Probe::http(ip, HTTP, "/slow?ms=500"),
            true,
        ),
        row(
            "slow",
            "readyz",
            http_get(HTTP, "/slow?ms=1500"),
            |ip| Probe::http(ip, HTTP, "/slow?ms=1500"),
            false,
        ),
        row(
            "slow",
            "startupz",
            http_get(HTTP, "/redirect/same"),
            |ip| Probe::http(ip, HTTP, "/redirect/same"),
            true,
        ),
        row(
            "slow",
            "poststartz",
            http_get(HTTP, "/slow?ms=1600"),
            |ip| Probe::hook(ip, HTTP, "/slow?ms=1600"),
            true,
        ),
    ]
}
