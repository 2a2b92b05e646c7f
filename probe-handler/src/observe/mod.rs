//! Metrics, the admin server, and what `status` shows.

pub mod finding;
pub mod metrics;
