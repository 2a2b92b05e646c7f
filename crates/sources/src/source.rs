//! The messages that a source of pods sends to the registry.

use std::sync::Arc;

use pods::select::SelectedPod;

/// One message of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// All pods, including those that are not served. A pod that is missing here no longer exists.
    /// Replaces the previous pods; nothing is merged.
    Replace(Vec<Arc<SelectedPod>>),
    /// All current problems as texts for operators, each with the object and its problem. Replaces the
    /// previous problems.
    Problems(Vec<String>),
}
