//! The interface through which the registry writes endpoints to the kernel's map.

use std::net::SocketAddr;

use probe_handler_common::endpoint::EndpointValue;

/// The kernel did not add or remove an endpoint.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct WriteError(#[from] pub Box<dyn std::error::Error + Send + Sync>);

/// Writes endpoints to the kernel's map.
pub trait EndpointWriter: Send {
    /// Adds an endpoint, replacing any other at its address.
    ///
    /// # Errors
    /// Those of the kernel: the map is full, or memory is exhausted.
    fn put(&mut self, address: SocketAddr, value: EndpointValue) -> Result<(), WriteError>;

    /// Removes an endpoint. It is no error if there is none.
    ///
    /// # Errors
    /// Those of the kernel.
    fn take(&mut self, address: SocketAddr) -> Result<(), WriteError>;
}
