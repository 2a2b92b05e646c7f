//! Where endpoints are put for the kernel to see.

use std::net::SocketAddr;

use probe_handler_common::endpoint::EndpointValue;

/// The kernel did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct WriteError(#[from] pub Box<dyn std::error::Error + Send + Sync>);

/// Where the registry puts endpoints.
pub trait EndpointWriter: Send {
    /// Puts an endpoint, in place of what stood there.
    ///
    /// # Errors
    /// The kernel's: the map is full, or out of memory.
    fn put(&mut self, address: SocketAddr, value: EndpointValue) -> Result<(), WriteError>;

    /// Takes an endpoint away; one that is not there is no error.
    ///
    /// # Errors
    /// The kernel's.
    fn take(&mut self, address: SocketAddr) -> Result<(), WriteError>;
}
