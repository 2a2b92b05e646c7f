//! `kubectl probes`: the probes of all nodes, as the daemons see them. Each daemon is requested through the API server, by a
//! port-forward to its admin port under the user's own kubeconfig and permissions.

mod advice;
mod changes;
pub mod cli;
mod cluster;
mod daemons;
mod explain;
mod file;
mod forward;
mod gather;
mod get;
mod nodes;
mod progress;
mod redact;
mod report;
mod sysdump;
mod watch;
