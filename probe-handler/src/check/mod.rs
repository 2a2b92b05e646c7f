//! Executing one check as the kubelet would have. Knows nothing of Kubernetes objects.

pub mod dial;
pub mod verdict;
