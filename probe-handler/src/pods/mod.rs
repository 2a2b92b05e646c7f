//! What should be probed: Pod manifests to probes, sources of pods, and the registry that turns
//! pods and their network namespaces into endpoints.

pub mod bounds;
pub mod dir;
pub mod endpoints;
pub mod inbound;
pub mod kube;
pub mod left_alone;
pub mod manifest;
pub mod mesh;
pub mod model;
pub mod path;
pub mod probers;
pub mod probes;
pub mod registry;
pub mod scope;
pub mod source;
pub mod target;
pub mod understand;
