//! Parses YAML as kubectl does, and keeps the place of each node in the text.
//!
//! Kubernetes' tools read scalars by the rules of YAML 1.1 (sigs.k8s.io/yaml): `0644` is a number, `no` a boolean.
//! Readers of YAML 1.2 take both as strings.

pub mod scalar;
pub mod tree;
pub mod value;
