//! The annotations that rewriting reads and leaves.

use std::collections::BTreeMap;

use json_patch::PatchOperation;
use json_patch::jsonptr::Pointer;
use serde_json::{Value, json};

use super::patch;

/// Whether Istio, or we, may rewrite the pod's probes (istio.io/api annotation
/// `SidecarRewriteAppHTTPProbers`). Set to `"false"` on what we have rewritten, so that Istio's
/// injector does not rewrite it again.
pub const REWRITE: &str = "sidecar.istio.io/rewriteAppHTTPProbers";
/// What [`REWRITE`] was before we set it, where it was there.
pub const REWRITE_BEFORE: &str = "probe-handler.io/original-rewriteAppHTTPProbers";

/// Most bytes in the keys and values of all annotations of an object; the API server refuses more
/// (kubernetes apimachinery pkg/api/validation/objectmeta.go `TotalAnnotationSizeLimitB`).
pub const LIMIT: usize = 256 * 1024;

/// The bytes of all keys and values.
pub fn size(annotations: &BTreeMap<String, String>) -> usize {
    annotations
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum()
}

/// The operations that give `pod` these annotations and no others. The last one takes the map with
/// it, and metadata that holds nothing else: to Kubernetes an empty map is the same as none.
pub fn replace(pod: &Value, annotations: &BTreeMap<String, String>) -> Vec<PatchOperation> {
    const METADATA: &Pointer = Pointer::from_static("/metadata");
    const ANNOTATIONS: &Pointer = Pointer::from_static("/metadata/annotations");
    let to = json!(annotations);
    match METADATA.resolve(pod) {
        Ok(Value::Object(metadata)) => match metadata.get("annotations") {
            Some(Value::Object(_)) if annotations.is_empty() && metadata.len() == 1 => {
                vec![patch::remove(METADATA.to_buf())]
            }
            Some(Value::Object(_)) if annotations.is_empty() => {
                vec![patch::remove(ANNOTATIONS.to_buf())]
            }
            Some(from @ Value::Object(_)) => patch::between(ANNOTATIONS, from, &to),
            _ if annotations.is_empty() => Vec::new(),
            _ => vec![patch::add(ANNOTATIONS.to_buf(), to)],
        },
        _ if annotations.is_empty() => Vec::new(),
        _ => vec![patch::add(METADATA.to_buf(), json!({"annotations": to}))],
    }
}
