//! probe-handler: answers the kubelet's health probes for pods behind a service mesh, once per node.
//!
//! This crate contains the command line, the wiring and the interfaces for operators; the crates of `crates/` do the work
//! (`ARCHITECTURE.md` at the root of the repository has the map). `app` puts the parts together, and no module uses it; `cli`
//! handles configuration and output.

pub mod app;
pub mod cli;
pub mod observe;
pub mod preflight;
