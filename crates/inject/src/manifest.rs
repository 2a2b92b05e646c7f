//! A whole manifest: every pod in it is changed, everything else stays.

use json_patch::PatchOperation;
use serde_json::Value;
use serde_json::value::RawValue;

use super::edit::{self, Edit};
use super::emit::emit;
use super::render::flow;
use super::workloads;
use webhook::patch::within;
use webhook::rewrite::Admission;
use yaml::tree::{self, Document, Malformed};

/// The result of changing a manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The new text.
    pub text: String,
    /// Warnings for the manifest's author, each beginning with its place.
    pub warnings: Vec<String>,
    /// How many probes and hooks were changed.
    pub changed: usize,
}

/// Why a manifest was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not valid YAML.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The new text would not have the expected meaning.
    #[error(
        "document {0}: it can't be changed without changing more than its probes; write it without tags, anchors and merge keys"
    )]
    Unfaithful(usize),
}

/// Changes every pod of a manifest (`admit_in` or `revert` of the webhook as `change`, which gets the namespace of the
/// pod's workload and the pod).
///
/// # Errors
/// It is not valid YAML, or can't be changed without changing anything else.
pub fn change(
    text: &str,
    change: impl Fn(Option<&str>, &Value) -> Admission,
) -> Result<Outcome, Error> {
    let mut outcome = Outcome::default();
    let mut plans = Vec::new();
    let documents = tree::parse(text)?;
    for (index, document) in documents.iter().enumerate() {
        let object = document.to_json(index + 1)?;
        let mut patch = Vec::new();
        let name = describe(&object, index + 1);
        let about_workload = workloads::misplaced(&object)
            .into_iter()
            .chain(workloads::unknown_workload(&object));
        let about_workload = about_workload.map(|warning| format!("{name}: {warning}"));
        outcome.warnings.extend(about_workload);
        for workloads::Place { at, namespace } in workloads::pods(&object) {
            let Ok(pod) = at.resolve(&object) else {
                continue;
            };
            let admission = change(namespace, pod);
            outcome.changed += admission.changed;
            let warnings = admission.warnings.iter();
            outcome
                .warnings
                .extend(warnings.map(|warning| format!("{name}: {warning}")));
            patch.extend(within(&at, admission.patch));
        }
        let expected = patched(object, &patch).ok_or(Error::Unfaithful(index + 1))?;
        plans.push(Plan {
            document,
            expected,
            patch,
        });
    }
    outcome.text = write(text, &plans)?;
    let lost = comments(text)
        .filter(|comment| !outcome.text.contains(comment))
        .count();
    if lost > 0 {
        outcome.warnings.push(format!(
            "{lost} comments are lost, because their document had to be written anew: it has tags, anchors or merge keys"
        ));
    }
    Ok(outcome)
}

/// The comments in a YAML text, and parts of strings that look like comments.
fn comments(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let line = line.trim();
        match line.starts_with('#') {
            true => Some(line),
            false => line.find(" #").map(|at| line[at..].trim()),
        }
    })
}

fn patched(mut object: Value, patch: &[PatchOperation]) -> Option<Value> {
    json_patch::patch(&mut object, patch).ok()?;
    Some(object)
}

/// Describes an object of the manifest for its author.
fn describe(object: &Value, number: usize) -> String {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or("object");
    match text("/metadata/name").or_else(|| text("/metadata/generateName")) {
        Some(name) => format!("document {number}, {kind} {name}"),
        None => format!("document {number}, {kind}"),
    }
}

/// A document and its expected value.
struct Plan<'a> {
    document: &'a Document,
    expected: Value,
    patch: Vec<PatchOperation>,
}

impl Plan<'_> {
    /// The edits that change only the affected text, where that is possible.
    fn in_place(&self, text: &str, newline: &str) -> Vec<Edit> {
        if self.patch.is_empty() {
            return Vec::new();
        }
        edit::edits(self.document, text, &self.patch, newline)
            .unwrap_or_else(|| self.anew(text, newline))
    }

    /// The document, written from scratch.
    fn anew(&self, text: &str, newline: &str) -> Vec<Edit> {
        let Some(root) = self.document.nodes.first() else {
            return Vec::new();
        };
        let old = text.get(root.span.clone()).unwrap_or_default();
        if serde_json::from_str::<&RawValue>(old).is_ok() {
            return vec![Edit {
                at: root.span.clone(),
                with: flow(&self.expected, true),
            }];
        }
        let mut with = emit(self.document, &self.expected, newline);
        if root.column != 0 {
            with.insert_str(0, newline); // on the line of its `---`
        }
        vec![Edit {
            at: root.span.clone(),
            with,
        }]
    }
}

/// The changed text, which is verified to have the expected meaning.
fn write(text: &str, plans: &[Plan<'_>]) -> Result<String, Error> {
    let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let mut edits: Vec<_> = plans
        .iter()
        .map(|plan| plan.in_place(text, newline))
        .collect();
    let suspects = match edited(text, &edits, plans) {
        Ok(changed) => return Ok(changed),
        Err(suspects) => suspects,
    };
    for &number in &suspects {
        if !plans[number].patch.is_empty() {
            edits[number] = plans[number].anew(text, newline);
        }
    }
    edited(text, &edits, plans).map_err(|suspects| {
        let number = suspects.first().map_or(0, |number| number + 1);
        Error::Unfaithful(number)
    })
}

/// The edited text; or, if it does not have the expected meaning, the documents that may be the cause, by number
/// from 0. If the edited text can't be parsed, these are all documents.
fn edited(text: &str, edits: &[Vec<Edit>], plans: &[Plan<'_>]) -> Result<String, Vec<usize>> {
    let all = || (0..plans.len()).collect();
    let changed = edit::apply(text, edits.concat()).ok_or_else(all)?;
    let documents = tree::parse(&changed).map_err(|_| all())?;
    if documents.len() != plans.len() {
        return Err(all());
    }
    let meaning = |number: usize| documents[number].to_json(number + 1);
    let wrong: Vec<_> = (0..plans.len())
        .filter(|&number| meaning(number).as_ref() != Ok(&plans[number].expected))
        .collect();
    if wrong.is_empty() {
        Ok(changed)
    } else {
        Err(wrong)
    }
}

#[cfg(test)]
mod tests;
