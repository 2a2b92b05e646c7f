//! probe-handler: answers the kubelet's health probes for pods behind a service mesh, once per node.
//!
//! `ARCHITECTURE.md` at the root of the repository has the map. Arrows go one way:
//! `app` puts the parts together and nobody uses it; `cli` knows configuration and output; `handler` uses `check`;
//! `kernel` implements what `check`, `handler` and `pods` ask of it as traits; `webhook` knows nothing of the kernel.

pub mod app;
pub mod check;
pub mod cli;
pub mod handler;
pub mod inject;
pub mod kernel;
pub mod listen;
pub mod observe;
pub mod pods;
pub mod webhook;
pub mod yaml;
