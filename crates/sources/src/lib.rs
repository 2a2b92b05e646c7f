//! Where pods come from: a directory of manifests or the Kubernetes API. Each source sends all its pods whenever
//! something has changed.

pub mod dir;
pub mod kube;
pub mod source;
