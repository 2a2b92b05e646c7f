//! probe-handler: answers the kubelet's health probes for pods behind a service mesh, once per node.
//!
//! This crate is the command line, the wiring and what operators see; the work is done by the crates it puts together
//! (`ARCHITECTURE.md` at the root of the repository has the map). `app` puts the parts together and nobody uses it; `cli`
//! knows configuration and output.

pub mod app;
pub mod cli;
pub mod observe;
pub mod preflight;
