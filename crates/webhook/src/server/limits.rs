//! Limits for clients: time, connections, memory.

use std::time::Duration;

/// Bounds of a server. All are far above what an API server needs, and small compared to a container's memory.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Concurrent connections; beyond that the least active one is closed.
    pub connections: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long a new connection may take to send the head of its first request.
    pub first_request: Duration,
    /// How long a connection may be idle, and how long the head of a later request may take on HTTP/1.1. An API
    /// server closes idle connections after 90 s (Go's http.Transport as client-go configures it), and should be
    /// the first to close.
    pub idle: Duration,
    /// How long a request's body may take.
    pub body_time: Duration,
    /// Maximum size of a body, in bytes. The API server accepts objects of 3 MiB (kubernetes
    /// staging/src/k8s.io/apiserver/pkg/server/config.go, MaxRequestBodyBytes); escapes in JSON and the
    /// review around the object can make the body longer.
    pub body: usize,
    /// Bytes of all bodies together, not counting the first 64 KiB of each.
    pub bodies: usize,
    /// Bytes of all unsent answers, plus 4 KiB for each; beyond that the connections of the oldest are closed.
    pub answers: usize,
    /// Bodies read concurrently; beyond that the oldest is given up.
    pub requests: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1_500,
            handshake: Duration::from_secs(5),
            first_request: Duration::from_secs(10),
            idle: Duration::from_secs(100),
            body_time: Duration::from_secs(10),
            body: 8 << 20,
            bodies: 32 << 20,
            answers: 16 << 20,
            requests: 512,
        }
    }
}
