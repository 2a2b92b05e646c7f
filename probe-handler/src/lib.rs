//! probe-handler: answers the kubelet's health probes for pods behind a service mesh, once per node.
//!
//! `ARCHITECTURE.md` at the root of the repository has the map. Arrows go one way:
//! `cli -> app -> {handler, observe} -> check -> kernel`; `pods` reaches the kernel only through
//! the registry's map writer; `webhook` knows nothing of the kernel.

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
