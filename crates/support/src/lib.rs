//! What several layers need: listeners, readiness, pauses between attempts, which build this is.

pub mod backoff;
pub mod build;
pub mod error_chain;
pub mod listen;
pub mod missing;
pub mod readiness;
