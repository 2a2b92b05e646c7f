//! Where pods come from: a directory of manifests or the Kubernetes API. Each source sends all its pods whenever
//! something has changed. [`directory`] follows other files, such as a mounted ConfigMap.

pub mod dir;
pub mod directory;
pub mod kube;
pub mod source;
