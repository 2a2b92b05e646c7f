//! Rewriting the probes in manifests, for `probe-handler inject`.
//!
//! The text is edited where something changes, and stays as it is everywhere else: comments, order,
//! quotes. So nothing can be lost that YAML readers disagree about (`yes`, `0644`, `1e3`, 64-bit numbers):
//! what we don't touch we need not write. What was edited is read again and compared with what it
//! should say; where that differs (anchors, merge keys) the one document is written anew.

pub mod edit;
pub mod emit;
pub mod manifest;
pub mod render;
pub mod workloads;
