//! Metrics, the admin server, and what `status` shows.

pub mod metrics;
