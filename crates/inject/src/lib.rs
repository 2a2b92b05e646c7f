//! Rewrites the probes in manifests, for `probe-handler inject`.
//!
//! The text is edited only where something changes, so that comments, order and quotes elsewhere stay. Values that
//! YAML readers interpret differently (`yes`, `0644`, `1e3`, 64-bit numbers) are preserved, because unchanged text
//! is not written again. The edited text is parsed and compared with the expected result; where it differs
//! (anchors, merge keys), that one document is written from scratch.

pub mod edit;
pub mod emit;
pub mod manifest;
pub mod render;
pub mod workloads;
