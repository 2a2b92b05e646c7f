//! How much of what a client may take: time, connections, memory.

use std::time::Duration;

/// Bounds of a server. All are far above what an API server needs, and small against a container's memory.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once; one more, and the least active is closed.
    pub connections: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long a new connection may take to send the head of its first request.
    pub first_request: Duration,
    /// How long a connection may be idle, and the head of a later request may take on HTTP/1.1. An API server
    /// closes idle connections after 90 s (Go's http.Transport as client-go sets it up): it should be the first.
    pub idle: Duration,
    /// How long a request's body may take.
    pub body_time: Duration,
    /// Longest body, in bytes. The API server takes objects of 3 MiB (kubernetes
    /// staging/src/k8s.io/apiserver/pkg/server/config.go, MaxRequestBodyBytes); as JSON, with characters
    /// escaped and the review around it, one can be longer.
    pub body: usize,
    /// Bytes of all bodies together, not counting the first 64 KiB of each.
    pub bodies: usize,
    /// Bytes of all answers that are not sent yet, and 4 KiB for each; more, and the connections of the oldest are closed.
    pub answers: usize,
    /// Bodies read at once; one more, and the oldest is given up.
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
