//! Undoing what was done at admission.

use json_patch::PatchOperation;
use serde_json::{Map, Value};

use super::annotations::{self, REWRITE, REWRITE_BEFORE};
use super::originals;
use super::patch;
use super::reading::{Before, Reading};
use super::rewrite::Admission;
use pods::probers::{self, PROBES};

/// Restores every probe and hook of `pod` (a Pod, or the template of one) that we have rewritten, and
/// takes our annotations away, as a patch. What changed beside them since stays. Never fails: a Pod that
/// can't be understood is left as it is, and a warning says why.
pub fn revert(pod: &Value) -> Admission {
    let mut admission = Admission::default();
    match Reading::new(pod) {
        Ok(reading) => match &reading.before {
            Before::Ours { port, originals } => restore(&reading, *port, originals, &mut admission),
            Before::Odd(why) => admission
                .warnings
                .push(format!("the Pod is left as it is: {why}")),
            Before::Untouched | Before::Istios => {}
        },
        Err(error) => admission.warnings.push(format!(
            "the Pod is left as it is, it can't be understood: {error}"
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
                    "container {:?}, {}: annotation {PROBES} has no usable original for {path}; left as it is",
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
