//! What is done to a Pod at admission.

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
    /// Whether pods are rewritten that do not decide for themselves (annotation
    /// `sidecar.istio.io/rewriteAppHTTPProbers`).
    pub enabled: bool,
    /// The port to which rewritten probes point. A pod that was rewritten before keeps the one it has.
    pub port: NonZeroU16,
    /// What stands before Istio's paths.
    pub prefix: Prefix,
}

impl Default for Rewriting {
    /// As Istio's injector does it: on, port 15020, no prefix.
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

/// The answer to a Pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admission {
    /// What to change; empty if nothing.
    pub patch: Vec<PatchOperation>,
    /// What the author of the Pod should know. May repeat texts from the Pod, of any length.
    pub warnings: Vec<String>,
    /// How many probes and hooks the patch rewrites (or, by `revert`, restores).
    pub changed: usize,
}

/// Rewrites what can be served of `pod` (a Pod, or the template of one) to `httpGet` on the rewrite
/// port, as a patch. Idempotent: what was rewritten before is left as it is, what came since is added.
/// Never fails: a Pod that can't be understood is left as it is, and a warning says why.
pub fn admit(pod: &Value, rewriting: &Rewriting) -> Admission {
    let mut admission = Admission::default();
    match Reading::new(pod) {
        Ok(reading) if reading.concerns_us() => {
            rewrite(&reading, rewriting, &mut admission);
        }
        Ok(_) => {}
        Err(error) => admission.warnings.push(format!(
            "the Pod is left as it is, it can't be understood: {error}"
        )),
    }
    admission
}

fn rewrite(reading: &Reading<'_>, rewriting: &Rewriting, admission: &mut Admission) {
    let (on, warning) = decide(wish(reading), rewriting.enabled);
    admission.warnings.extend(warning);
    if !on {
        return;
    }
    let (port, mut originals) = match &reading.before {
        Before::Ours { port, originals } => (*port, originals.clone()),
        Before::Odd(why) => {
            let warning = format!("the Pod is left as it is: {why}");
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
                let warning = format!("the Pod is left as it is: {why}");
                return admission.warnings.push(warning);
            }
        }
    }
    if changed > 0 && reading.before == Before::Istios {
        admission.warnings.push(format!(
            "{changed} probes and hooks are left as they are, for Istio's injector has rewritten others of this Pod"
        ));
        return;
    }
    if originals.is_empty() {
        return;
    }
    // The daemon would serve no more, and nobody else answers what was rewritten.
    if changed > 0 && !are_kept(&reading.before, texts) {
        let warning = format!("the Pod is left as it is: {}", SkipReason::TooMany);
        return admission.warnings.push(warning);
    }
    let annotations = annotated(reading, originals, changed);
    let size = annotations::size(&annotations);
    if size > annotations::LIMIT {
        admission.warnings.push(format!(
            "the Pod is left as it is: its annotations would be {size} bytes, of which {} are allowed",
            annotations::LIMIT
        ));
        return;
    }
    patch.extend(annotations::replace(reading.raw, &annotations));
    admission.patch = patch;
    admission.changed = changed;
}

/// Whether the daemon keeps all originals: those from before, and new ones with so many bytes of text.
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

/// What the Pod itself says about rewriting. On a Pod that we have rewritten before, `"false"` is our
/// own word to Istio's injector, and the Pod's stands beside it.
fn wish<'a>(reading: &'a Reading<'_>) -> Option<&'a str> {
    let said = reading.annotation(REWRITE);
    let ours = matches!(reading.before, Before::Ours { .. });
    if ours && said.and_then(parse_bool) == Some(false) {
        reading.annotation(REWRITE_BEFORE)
    } else {
        said
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
    let said = annotations.get(REWRITE);
    if said.and_then(|said| parse_bool(said)) != Some(false)
        && let Some(said) = annotations.insert(REWRITE.to_owned(), "false".to_owned())
    {
        annotations.entry(REWRITE_BEFORE.to_owned()).or_insert(said);
    }
    annotations
}

/// One probe or hook that is to be rewritten.
struct Change {
    path: String,
    original: Value,
    /// Bytes that the daemon keeps of it.
    text: usize,
    operations: Vec<PatchOperation>,
}

/// The rewritten paths that are somebody's.
struct Taken<'a> {
    /// They have an original.
    originals: &'a Map<String, Value>,
    /// They were probed before.
    probed: &'a HashSet<String>,
}

/// One that is not.
enum Left {
    /// None of our business, or rewritten already.
    Silently,
    /// It can't be served.
    Because(String),
    /// Nothing of its Pod can be rewritten.
    WithItsPod(String),
}

fn change(
    reading: &Reading<'_>,
    declared: &Declared<'_>,
    port: u16,
    prefix: &Prefix,
    taken: &Taken<'_>,
) -> Result<Change, Left> {
    let told = |why: &dyn fmt::Display| {
        let (name, field) = (&declared.container.name, declared.kind.field());
        format!("container {name:?}, {field}: {why}")
    };
    let because = |why: &dyn fmt::Display| Left::Because(format!("{}; left as it is", told(why)));
    let probe = match reading.parse_pod(declared) {
        Ok(probe) => probe,
        Err(SkipReason::Exec | SkipReason::Sleep | SkipReason::MeshProxy) => {
            return Err(Left::Silently);
        }
        Err(why) => return Err(because(&why)),
    };
    let untouched = reading.before == Before::Untouched;
    if probers::rewritten_path(&probe).is_some() {
        // Whose originals are where? The daemon, too, could take this for a probe of ours.
        return Err(if untouched {
            Left::WithItsPod(told(&"looks rewritten, but its original is not there"))
        } else {
            Left::Silently
        });
    }
    // The daemon takes every connection to the rewrite port: a TCP probe of that port would always
    // pass. In a Pod that is rewritten already, rewriting this one too keeps it true.
    if probe.action.port() == port && untouched {
        let why = told(&format!("probes port {port}, the rewrite port"));
        return Err(Left::WithItsPod(why));
    }
    if !is_word(&probe.container) {
        return Err(because(&"the container's name does not fit into a path"));
    }
    let path = prefix.path(&probe.container, probe.kind);
    if taken.originals.contains_key(&path) {
        let why = format!("annotation {PROBES} has an original for {path} already");
        return Err(because(&why));
    }
    if !untouched && taken.probed.contains(&path) {
        let why = format!("another probe goes to {path} already");
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
