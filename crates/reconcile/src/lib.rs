//! Pods and the network namespaces in which they are to endpoints: in the kernel, by whoever implements
//! [`EndpointWriter`], and in the handler's table.

pub mod endpoints;
pub mod path;
pub mod registry;
mod writer;

pub use writer::{EndpointWriter, WriteError};
