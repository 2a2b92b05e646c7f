//! Applies a JSON Patch to YAML text.

use std::collections::BTreeMap;
use std::ops::Range;

use json_patch::PatchOperation;
use json_patch::jsonptr::{Pointer, PointerBuf};
use serde_json::{Map, Value};

use super::render;
use yaml::tree::{Document, Id, Kind};

/// Bytes of the text, and the text that replaces them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The bytes to replace; empty for an insertion.
    pub at: Range<usize>,
    /// The new text.
    pub with: String,
}

/// The changes to the entries of one mapping.
#[derive(Default)]
struct Changes {
    set: Map<String, Value>,
    remove: Vec<String>,
}

/// The edits that apply `patch` to `document`, which is parsed from `text`. `None` if what changes is not
/// at one place in the text (aliases, merge keys, lists). The caller checks the result, because
/// an edit inside an anchored node also changes its aliases.
pub fn edits(
    document: &Document,
    text: &str,
    patch: &[PatchOperation],
    newline: &str,
) -> Option<Vec<Edit>> {
    let mut mappings = BTreeMap::<PointerBuf, Changes>::new();
    for operation in patch {
        let (path, value) = match operation {
            PatchOperation::Add(add) => (&add.path, Some(&add.value)),
            PatchOperation::Replace(replace) => (&replace.path, Some(&replace.value)),
            PatchOperation::Remove(remove) => (&remove.path, None),
            _ => return None,
        };
        let (parent, key) = path.split_back()?;
        let changes = mappings.entry(parent.to_buf()).or_default();
        let key = key.decoded().into_owned();
        match value {
            Some(value) => drop(changes.set.insert(key, value.clone())),
            None => changes.remove.push(key),
        }
    }
    let mut edits = Vec::new();
    for (place, changes) in mappings {
        let mapping = Mapping::at(document, text, newline, &place)?;
        mapping.change(changes, &mut edits)?;
    }
    Some(edits)
}

/// Applies edits. `None` if they overlap or reach beyond the text.
pub fn apply(text: &str, mut edits: Vec<Edit>) -> Option<String> {
    edits.sort_by_key(|edit| (edit.at.start, edit.at.end));
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for edit in edits {
        out.push_str(text.get(done..edit.at.start)?);
        out.push_str(&edit.with);
        done = edit.at.end.max(edit.at.start);
    }
    out.push_str(text.get(done..)?);
    Some(out)
}

struct Mapping<'a> {
    document: &'a Document,
    text: &'a str,
    newline: &'a str,
    flow: bool,
    node: Id,
    entries: &'a [(Id, Id)],
}

impl<'a> Mapping<'a> {
    fn at(
        document: &'a Document,
        text: &'a str,
        newline: &'a str,
        place: &Pointer,
    ) -> Option<Self> {
        let mut node = 0;
        for token in place {
            node = match &document.nodes.get(node)?.kind {
                Kind::Mapping { entries, .. } => {
                    let name = token.decoded();
                    // If a key appears twice, the last value counts.
                    entries
                        .iter()
                        .rfind(|(key, _)| document.key(*key).as_deref() == Some(&*name))?
                        .1
                }
                Kind::Sequence { items } => *items.get(token.encoded().parse::<usize>().ok()?)?,
                Kind::Scalar { .. } | Kind::Alias(_) => return None,
            };
        }
        match &document.nodes.get(node)?.kind {
            Kind::Mapping { flow, entries } => Some(Self {
                document,
                text,
                newline,
                flow: *flow,
                node,
                entries,
            }),
            _ => None,
        }
    }

    fn position(&self, key: &str) -> Option<usize> {
        self.entries
            .iter()
            .rposition(|entry| self.document.key(entry.0).as_deref() == Some(key))
    }

    fn start(&self, index: usize) -> usize {
        self.document.nodes[self.entries[index].0].span.start
    }

    fn end(&self, index: usize) -> usize {
        let (key, value) = self.entries[index];
        self.document.value_end(self.text, key, value)
    }

    fn entry(&self, key: &str, value: &Value) -> String {
        let key = if self.flow {
            render::flow_string(key, self.json())
        } else {
            render::string(key)
        };
        format!("{key}:{}", self.after_colon(value))
    }

    fn after_colon(&self, value: &Value) -> String {
        if self.flow {
            format!(" {}", render::flow(value, self.json()))
        } else {
            render::block(value, self.indent(), self.newline)
        }
    }

    /// Whether the document is JSON, where every key is quoted.
    fn json(&self) -> bool {
        self.document.nodes.first().is_some_and(|root| {
            let text = self.text.get(root.span.clone()).unwrap_or_default();
            text.strip_prefix('{')
                .is_some_and(|rest| rest.trim_start().starts_with('"'))
        })
    }

    /// The column of the keys.
    fn indent(&self) -> usize {
        self.entries
            .first()
            .map_or(0, |entry| self.document.nodes[entry.0].column)
    }

    fn change(&self, changes: Changes, edits: &mut Vec<Edit>) -> Option<()> {
        let mut new = Vec::new();
        for (key, value) in changes.set {
            match self.position(&key) {
                Some(index) => edits.push(self.set(index, &value)?),
                None => new.push((key, value)),
            }
        }
        let mut removed = Vec::new();
        for key in changes.remove {
            removed.push(self.position(&key)?);
        }
        removed.sort_unstable();
        // New entries take the place of removed ones.
        let replaced = removed.len().min(new.len());
        for (index, (key, value)) in removed.drain(..replaced).zip(new.drain(..replaced)) {
            edits.push(Edit {
                at: self.start(index)..self.end(index),
                with: self.entry(&key, &value),
            });
        }
        if !new.is_empty() {
            edits.push(self.insert(&new));
        }
        self.remove(&removed, edits);
        Some(())
    }

    /// Sets the value of an entry.
    fn set(&self, index: usize, value: &Value) -> Option<Edit> {
        let (key, old) = self.entries[index];
        let colon = self.document.after_colon(self.text, key)?;
        let end = self.end(index);
        let old = &self.document.nodes[old];
        let with = self.after_colon(value);
        // If the old value is a scalar on the line of its key, the text before it stays.
        let beside = matches!(old.kind, Kind::Scalar { .. })
            && !old.span.is_empty()
            && !self.text[colon..end].contains('\n');
        Some(match with.strip_prefix(' ') {
            Some(scalar) if beside => Edit {
                at: old.span.clone(),
                with: scalar.to_owned(),
            },
            _ => Edit {
                at: colon..end,
                with,
            },
        })
    }

    /// Inserts entries before the first one, so that the text after it does not matter.
    fn insert(&self, new: &[(String, Value)]) -> Edit {
        let mut with = String::new();
        let separator = if self.flow {
            ", ".to_owned()
        } else {
            format!("{}{}", self.newline, " ".repeat(self.indent()))
        };
        for (index, (key, value)) in new.iter().enumerate() {
            with.push_str(&self.entry(key, value));
            if index + 1 < new.len() || !self.entries.is_empty() {
                with.push_str(&separator);
            }
        }
        let at = match self.entries.first() {
            Some(_) => self.start(0),
            // `{}`
            None => self.document.nodes[self.node].span.end - 1,
        };
        Edit { at: at..at, with }
    }

    /// Removes entries, given by their sorted indexes.
    fn remove(&self, removed: &[usize], edits: &mut Vec<Edit>) {
        let count = self.entries.len();
        // Entries at the end are removed together with the text before them.
        let kept = (0..count).rev().find(|index| !removed.contains(index));
        let tail = kept.map_or(0, |index| index + 1);
        for &index in removed.iter().filter(|&&index| index < tail) {
            let end = if self.flow {
                self.start(index + 1)
            } else {
                self.next_line(self.end(index))
            };
            edits.push(Edit {
                at: self.start(index)..end,
                with: String::new(),
            });
        }
        if tail == count {
            return;
        }
        let last = self.end(count - 1);
        edits.push(match kept {
            Some(kept) if self.flow => Edit {
                at: self.end(kept)..last,
                with: String::new(),
            },
            Some(kept) => Edit {
                at: self.end_of_line(self.end(kept))..self.end_of_line(last),
                with: String::new(),
            },
            None => Edit {
                at: self.start(0)..last,
                with: if self.flow { "" } else { "{}" }.to_owned(),
            },
        });
    }

    fn end_of_line(&self, from: usize) -> usize {
        let rest = &self.text[from..];
        let line = rest.find('\n').map_or(rest, |newline| &rest[..newline]);
        from + line.trim_end_matches('\r').len()
    }

    /// The start of the next line, after the indentation of the keys.
    fn next_line(&self, from: usize) -> usize {
        let end = self.end_of_line(from);
        let after = self.text[end..].trim_start_matches('\r');
        let after = after.strip_prefix('\n').unwrap_or(after);
        let spaces = after.bytes().take_while(|&b| b == b' ').count();
        self.text.len() - after.len() + spaces.min(self.indent())
    }
}
