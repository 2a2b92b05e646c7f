//! Interprets a Pod object: its mesh, whether it is served, its probes, and the originals of rewritten probes.

pub mod inbound;
pub mod manifest;
pub mod mesh;
pub mod parse;
pub mod probers;
pub mod probes;
pub mod scope;
pub mod select;
pub mod skipped;
pub mod state;
pub mod target;
