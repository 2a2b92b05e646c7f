//! Turns pods and their network namespaces into endpoints: in the kernel, through an [`EndpointWriter`], and in
//! the handler's table.

pub mod endpoints;
pub mod path;
pub mod redirects;
pub mod registry;
mod writer;

pub use writer::{EndpointWriter, WriteError};
