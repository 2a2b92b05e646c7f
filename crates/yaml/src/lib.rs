//! Parses YAML as kubectl does, and keeps the place of each node in the text.
//!
//! Kubernetes' tools read YAML with a translation of libyaml to Go (sigs.k8s.io/yaml, goyaml.v2), a superset of YAML
//! 1.1 in some places and of 1.2 in others: `0644` is a number, `no` a boolean, and if a key appears twice, the last
//! value counts. No parser for Rust reads the same texts with the same result: those of YAML 1.2 reject some of them,
//! and the translations of libyaml panic on others. `kubectl.json` lists texts and what kubectl reads; the tests
//! compare.

pub mod scalar;
pub mod stream;
pub mod tree;
pub mod value;

mod json;
mod parse;
mod scan;
mod text;
mod token;
