//! Helpers for several layers: formats of metrics, listeners, readiness, missing parts, backoff, error messages, version of this build.

pub mod backoff;
pub mod build;
pub mod error_chain;
pub mod exposition;
pub mod listen;
pub mod missing;
pub mod readiness;
