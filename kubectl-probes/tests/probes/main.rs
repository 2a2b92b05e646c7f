//! The plugin as a process, with real HTTP and TLS to the double of the API server, and port-forwards to doubles of daemons.

mod cluster;
mod get;
mod verbs;
