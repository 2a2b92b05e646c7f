//! What should be probed: Pod manifests to probes, sources of pods, and the registry that turns
//! pods and their network namespaces into endpoints.

pub mod model;
