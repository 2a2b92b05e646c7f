//! YAML as kubectl reads it, with the places in the text of what was read.
//!
//! Kubernetes' tools read YAML 1.1's scalars (sigs.k8s.io/yaml): `0644` is a number, `no` a boolean. Readers of
//! YAML 1.2 take both for strings.

pub mod scalar;
pub mod tree;
pub mod value;
