//! Helpers for several layers: listeners, readiness, missing parts, backoff, error messages, version of this build.

pub mod backoff;
pub mod build;
pub mod error_chain;
pub mod listen;
pub mod missing;
pub mod readiness;
