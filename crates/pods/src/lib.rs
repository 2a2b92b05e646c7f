//! A Pod object, understood: its mesh, whether it is served, its probes, the originals of those that were rewritten.

pub mod inbound;
pub mod manifest;
pub mod mesh;
pub mod parse;
pub mod probers;
pub mod probes;
pub mod scope;
pub mod skipped;
pub mod target;
