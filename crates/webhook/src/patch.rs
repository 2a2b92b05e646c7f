//! Minimal JSON Patches (RFC 6902).

use json_patch::PatchOperation;
use json_patch::jsonptr::{Pointer, PointerBuf};
use serde_json::Value;

/// The operations that change `from`, which is at `at` in a document, into `to`.
pub fn between(at: &Pointer, from: &Value, to: &Value) -> Vec<PatchOperation> {
    within(at, json_patch::diff(from, to).0)
}

/// Turns a patch of the value at `at` into a patch of the whole document.
pub fn within(at: &Pointer, mut patch: Vec<PatchOperation>) -> Vec<PatchOperation> {
    for operation in &mut patch {
        let path = match operation {
            PatchOperation::Add(add) => &mut add.path,
            PatchOperation::Remove(remove) => &mut remove.path,
            PatchOperation::Replace(replace) => &mut replace.path,
            PatchOperation::Move(rename) => &mut rename.path,
            PatchOperation::Copy(copy) => &mut copy.path,
            PatchOperation::Test(test) => &mut test.path,
        };
        *path = at.concat(path);
    }
    patch
}

/// Sets a member of an object, whether it exists or not.
pub fn add(path: PointerBuf, value: Value) -> PatchOperation {
    PatchOperation::Add(json_patch::AddOperation { path, value })
}

/// Sets an existing member of an object.
pub fn replace(path: PointerBuf, value: Value) -> PatchOperation {
    PatchOperation::Replace(json_patch::ReplaceOperation { path, value })
}

/// Removes a member of an object.
pub fn remove(path: PointerBuf) -> PatchOperation {
    PatchOperation::Remove(json_patch::RemoveOperation { path })
}
