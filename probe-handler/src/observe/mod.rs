//! Metrics, the admin server, and what `status` shows.

pub mod admin;
pub mod admin_socket;
pub mod build;
pub mod collectors;
pub mod finding;
pub mod metrics;
pub mod missing;
pub mod readiness;
pub mod rendering;
pub mod status;
pub mod turns;
