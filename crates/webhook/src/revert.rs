//! Reverts the changes made at admission.

use json_patch::PatchOperation;
use serde_json::{Map, Value};

use super::annotations::{self, REWRITE, REWRITE_BEFORE};
use super::originals;
use super::patch;
use super::reading::{Before, Reading};
use super::rewrite::Admission;
use pods::probers::{self, PROBES};

/// A patch that restores every rewritten probe and hook of `pod` (a Pod or a Pod template) and removes
/// our annotations. Later changes to other fields are kept. Never fails: a Pod that can't be read is
/// unchanged, and a warning gives the reason.
pub fn revert(pod: &Value) -> Admission {
    let mut admission = Admission::default();
    match Reading::new(pod) {
        Ok(reading) => match &reading.before {
            Before::Ours { port, originals } => restore(&reading, *port, originals, &mut admission),
            Before::Odd(why) => admission
                .warnings
                .push(format!("the Pod is unchanged: {why}")),
            Before::Untouched | Before::Istios => {}
        },
        Err(error) => admission.warnings.push(format!(
            "the Pod is unchanged because it can't be read: {error}"
        )),
    }
    admission
}

fn restore(
    reading: &Reading<'_>,
    port: u16,
    originals: &Map<String, Value>,
    admission: &mut Admission,
) {
    let mut unusable = false;
    for declared in reading.declared() {
        let Ok(probe) = reading.parse_pod(&declared) else {
            continue;
        };
        let Some(path) = probers::rewritten_path(&probe).filter(|_| probe.action.port() == port)
        else {
            continue;
        };
        let Some(entry) = originals.get(path) else {
            continue;
        };
        let restored = reading.place(&declared).and_then(|place| {
            let spec = place.resolve(reading.raw).ok()?;
            let restored = originals::restore(spec, entry)?;
            Some(patch::between(&place, spec, &restored))
        });
        match restored {
            Some(operations) => {
                admission.patch.extend(operations);
                admission.changed += 1;
            }
            None => {
                unusable = true;
                admission.warnings.push(format!(
                    "container {:?}, {}: annotation {PROBES} has no usable original for {path}; unchanged",
                    probe.container,
                    probe.kind.field()
                ));
            }
        }
    }
    if !unusable {
        admission.patch.extend(annotations_before(reading));
    }
}

fn annotations_before(reading: &Reading<'_>) -> Vec<PatchOperation> {
    let mut annotations = reading.annotations();
    annotations.remove(PROBES);
    match annotations.remove(REWRITE_BEFORE) {
        Some(before) => drop(annotations.insert(REWRITE.to_owned(), before)),
        None => drop(annotations.remove(REWRITE)),
    }
    annotations::replace(reading.raw, &annotations)
}
