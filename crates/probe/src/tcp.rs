//! A TCP check: whether the port accepts connections.

use std::net::SocketAddr;

use super::Finding;
use super::dial::{Dial, dial};

/// Connects to `address` and closes the connection (kubernetes pkg/probe/tcp/tcp.go). Has no timeout of its own.
pub async fn check(dialer: &dyn Dial, address: SocketAddr) -> Finding {
    match dial(dialer, address).await {
        Ok(_stream) => Finding::healthy(""),
        Err(error) => Finding::dial(&error),
    }
}
