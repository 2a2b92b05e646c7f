//! Metrics, the admin server, and the state that `status` shows.

pub mod admin;
pub mod admin_socket;
pub mod collectors;
pub mod finding;
pub mod rendering;
pub mod status;
pub mod turns;
