//! What a source of pods tells the registry.

use std::sync::Arc;

use pods::parse::ParsedPod;

/// One message of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// All pods there are, those that are not served included; a pod that is not among them is gone.
    /// It replaces what came before, it is not merged.
    Replace(Vec<Arc<ParsedPod>>),
    /// All problems there are now, for people, each naming the thing and what is wrong. Replaces
    /// what came before.
    Problems(Vec<String>),
}
