//! Metrics, the admin server, and the state that `status` shows.

pub mod admin;
pub mod admin_socket;
pub mod collectors;
pub mod finding;
pub mod history;
pub mod moment;
pub mod observed;
pub mod pod_events;
pub mod process;
pub mod rendering;
pub mod status;
pub mod turns;
