//! Rewrites a Pod at admission.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::num::NonZeroU16;

use json_patch::PatchOperation;
use serde::Serialize;
use serde_json::{Map, Value};

use super::annotations::{self, REWRITE, REWRITE_BEFORE};
use super::decide::decide;
use super::originals;
use super::patch;
use super::prefix::{Prefix, is_word};
use super::reading::{Before, Reading};
use model::bounds::Quota;
use pods::probers::{self, DEFAULT_PORT, PROBES, parse_bool};
use pods::probes::Declared;
use pods::skipped::SkipReason;

/// How to rewrite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rewriting {
    /// Whether pods without annotation `sidecar.istio.io/rewriteAppHTTPProbers` are rewritten; the annotation
    /// overrides this.
    pub enabled: bool,
    /// The port of rewritten probes. A pod that was rewritten before keeps its port.
    pub port: NonZeroU16,
    /// The prefix of Istio's paths.
    pub prefix: Prefix,
}

impl Default for Rewriting {
    /// Like Istio's injector: enabled, port 15020, no prefix.
    fn default() -> Self {
        const PORT: NonZeroU16 = match NonZeroU16::new(DEFAULT_PORT) {
            Some(port) => port,
            None => NonZeroU16::MIN,
        };
        Self {
            enabled: true,
            port: PORT,
            prefix: Prefix::default(),
        }
    }
}

/// The result for a Pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admission {
    /// The changes; empty if there are none.
    pub patch: Vec<PatchOperation>,
    /// Warnings for the author of the Pod. They may contain texts from the Pod, of any length.
    pub warnings: Vec<String>,
    /// How many probes and hooks the patch rewrites (in `revert`: restores).
    pub changed: usize,
}

/// A patch that rewrites the probes of `pod` (a Pod or a Pod template) that can be served to `httpGet` on
/// the rewrite port. Idempotent: probes rewritten before are unchanged, probes added since are rewritten.
/// Never fails: a Pod that can't be read is unchanged, and a warning gives the reason.
pub fn admit(pod: &Value, rewriting: &Rewriting) -> Admission {
    admit_in(None, pod, rewriting)
}

/// Like [`admit`], for a Pod in `namespace` if it does not name its own.
pub fn admit_in(namespace: Option<&str>, pod: &Value, rewriting: &Rewriting) -> Admission {
    let mut admission = Admission::default();
    match Reading::new(pod) {
        Ok(reading) if reading.concerns_us(namespace) => {
            admission.warnings = reading.ignored_marks();
            rewrite(&reading, rewriting, &mut admission);
        }
        Ok(_) => {}
        Err(error) => admission.warnings.push(format!(
            "the Pod is unchanged because it can't be read: {error}"
        )),
    }
    admission
}

fn rewrite(reading: &Reading<'_>, rewriting: &Rewriting, admission: &mut Admission) {
    let (on, warning) = decide(own_value(reading), rewriting.enabled);
    admission.warnings.extend(warning);
    if !on {
        return;
    }
    let (port, mut originals) = match &reading.before {
        Before::Ours { port, originals } => (*port, originals.clone()),
        Before::Odd(why) => {
            let warning = format!("the Pod is unchanged: {why}");
            return admission.warnings.push(warning);
        }
        Before::Istios | Before::Untouched => (rewriting.port.get(), Map::new()),
    };
    let mut patch = Vec::new();
    let mut changed = 0;
    let mut texts = Vec::new();
    let probed = reading.probed();
    for declared in reading.declared() {
        let taken = Taken {
            originals: &originals,
            probed: &probed,
        };
        match change(reading, &declared, port, &rewriting.prefix, &taken) {
            Ok(change) => {
                texts.push(change.text);
                originals.insert(change.path, change.original);
                patch.extend(change.operations);
                changed += 1;
            }
            Err(Left::Silently) => {}
            Err(Left::Because(why)) => admission.warnings.push(why),
            Err(Left::WithItsPod(why)) => {
                let warning = format!("the Pod is unchanged: {why}");
                return admission.warnings.push(warning);
            }
        }
    }
    if changed > 0 && reading.before == Before::Istios {
        admission.warnings.push(format!(
            "{changed} probes and hooks are unchanged because Istio's injector has rewritten others of this Pod"
        ));
        return;
    }
    if originals.is_empty() {
        return;
    }
    // The daemon would not serve probes beyond the quota, and nothing else answers rewritten probes.
    if changed > 0 && !are_kept(&reading.before, texts) {
        let warning = format!("the Pod is unchanged: {}", SkipReason::TooMany);
        return admission.warnings.push(warning);
    }
    let annotations = annotated(reading, originals, changed);
    let size = annotations::size(&annotations);
    if size > annotations::LIMIT {
        admission.warnings.push(format!(
            "the Pod is unchanged: its annotations would take {size} bytes; at most {} are allowed",
            annotations::LIMIT
        ));
        return;
    }
    patch.extend(annotations::replace(reading.raw, &annotations));
    admission.patch = patch;
    admission.changed = changed;
}

/// Whether the daemon keeps all originals: the earlier ones, and new ones with these bytes of text.
fn are_kept(before: &Before, new: Vec<usize>) -> bool {
    let mut kept = Quota::default();
    let from_before = match before {
        Before::Ours { originals, .. } => Some(originals),
        _ => None,
    };
    from_before
        .into_iter()
        .flatten()
        .map(|(path, original)| path.len() + original.to_string().len())
        .chain(new)
        .all(|text| kept.one_more(text))
}

/// The value of the Pod's own rewrite annotation. On a Pod that was rewritten before, our webhook has set
/// the annotation to `"false"` for Istio's injector, and the Pod's own value is in [`REWRITE_BEFORE`].
fn own_value<'a>(reading: &'a Reading<'_>) -> Option<&'a str> {
    let value = reading.annotation(REWRITE);
    let ours = matches!(reading.before, Before::Ours { .. });
    if ours && value.and_then(parse_bool) == Some(false) {
        reading.annotation(REWRITE_BEFORE)
    } else {
        value
    }
}

/// The annotations of the rewritten Pod.
fn annotated(
    reading: &Reading<'_>,
    originals: Map<String, Value>,
    changed: usize,
) -> BTreeMap<String, String> {
    let mut annotations = reading.annotations();
    if changed > 0 {
        annotations.insert(PROBES.to_owned(), Value::Object(originals).to_string());
    }
    let value = annotations.get(REWRITE);
    if value.and_then(|value| parse_bool(value)) != Some(false)
        && let Some(value) = annotations.insert(REWRITE.to_owned(), "false".to_owned())
    {
        annotations
            .entry(REWRITE_BEFORE.to_owned())
            .or_insert(value);
    }
    annotations
}

/// The changes for one probe or hook.
struct Change {
    path: String,
    original: Value,
    /// Bytes of text that the daemon keeps for it.
    text: usize,
    operations: Vec<PatchOperation>,
}

/// The rewritten paths that are in use.
struct Taken<'a> {
    /// Paths that have an original.
    originals: &'a Map<String, Value>,
    /// Paths that probes used before this rewriting.
    probed: &'a HashSet<String>,
}

/// Why a probe or hook is unchanged.
enum Left {
    /// It is not handled, or is rewritten already; needs no warning.
    Silently,
    /// It can't be served.
    Because(String),
    /// No probe of its Pod can be rewritten.
    WithItsPod(String),
}

fn change(
    reading: &Reading<'_>,
    declared: &Declared<'_>,
    port: u16,
    prefix: &Prefix,
    taken: &Taken<'_>,
) -> Result<Change, Left> {
    let placed = |why: &dyn fmt::Display| {
        let (name, field) = (&declared.container.name, declared.kind.field());
        format!("container {name:?}, {field}: {why}")
    };
    let because = |why: &dyn fmt::Display| Left::Because(format!("{}; unchanged", placed(why)));
    let probe = match reading.parse_pod(declared) {
        Ok(probe) => probe,
        Err(SkipReason::Exec | SkipReason::Sleep | SkipReason::MeshProxy) => {
            return Err(Left::Silently);
        }
        Err(why) => return Err(because(&why)),
    };
    let untouched = reading.before == Before::Untouched;
    if probers::rewritten_path(&probe).is_some() {
        // Its original is unknown, and the daemon could take it for a probe that our webhook rewrote.
        return Err(if untouched {
            Left::WithItsPod(placed(&"looks rewritten, but has no original"))
        } else {
            Left::Silently
        });
    }
    // The daemon accepts every connection to the rewrite port, so a TCP probe of that port would always
    // pass. In a Pod that is rewritten already, rewriting this probe too keeps its result correct.
    if probe.action.port() == port && untouched {
        let why = placed(&format!("probes port {port}, the rewrite port"));
        return Err(Left::WithItsPod(why));
    }
    if !is_word(&probe.container) {
        return Err(because(&"the container's name can't be part of a path"));
    }
    let path = prefix.path(&probe.container, probe.kind);
    if taken.originals.contains_key(&path) {
        let why = format!("annotation {PROBES} already has an original for {path}");
        return Err(because(&why));
    }
    if !untouched && taken.probed.contains(&path) {
        let why = format!("another probe already uses {path}");
        return Err(because(&why));
    }
    let place = reading.place(declared).ok_or(Left::Silently)?;
    let spec = place.resolve(reading.raw).map_err(|why| because(&why))?;
    let rewritten = originals::rewrite(spec, &probe, &path, port).map_err(|why| because(&why))?;
    Ok(Change {
        text: path.len() + probe.action.text_len(),
        path,
        original: rewritten.original,
        operations: patch::within(&place, rewritten.operations),
    })
}

#[cfg(test)]
mod tests;
