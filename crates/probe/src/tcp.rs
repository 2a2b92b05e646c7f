//! A TCP check: whether the port takes connections.

use std::net::SocketAddr;

use super::Finding;
use super::dial::{Dial, dial};

/// Connects to `address` and hangs up (kubernetes pkg/probe/tcp/tcp.go). Has no timeout of its own.
pub async fn check(dialer: &dyn Dial, address: SocketAddr) -> Finding {
    match dial(dialer, address).await {
        Ok(_stream) => Finding::healthy(""),
        Err(error) => Finding::dial(&error),
    }
}
