//! The annotations that rewriting reads and writes.

use std::collections::BTreeMap;

use json_patch::PatchOperation;
use json_patch::jsonptr::Pointer;
use serde_json::{Value, json};

use super::patch;

/// Whether Istio's injector or our webhook may rewrite the pod's probes (istio.io/api annotation
/// `SidecarRewriteAppHTTPProbers`). Our webhook sets it to `"false"` on pods that it has rewritten, so
/// that Istio's injector does not rewrite them again.
pub const REWRITE: &str = "sidecar.istio.io/rewriteAppHTTPProbers";
/// The value of [`REWRITE`] before our webhook set it, if it had one.
pub const REWRITE_BEFORE: &str = "probe-handler.io/original-rewriteAppHTTPProbers";

/// Maximum size of all annotations of an object, keys and values, in bytes; the API server rejects more
/// (kubernetes apimachinery pkg/api/validation/objectmeta.go `TotalAnnotationSizeLimitB`).
pub const LIMIT: usize = 256 * 1024;

/// The bytes of all keys and values.
pub fn size(annotations: &BTreeMap<String, String>) -> usize {
    annotations
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum()
}

/// The operations that give `pod` exactly these annotations. Without any, the map is removed too, and
/// metadata that contains nothing else: Kubernetes treats an empty map like a missing one.
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
