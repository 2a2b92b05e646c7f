//! Writes a document from scratch, where editing its text would change more than it should: aliases and merge
//! keys are resolved, comments and layout are lost, and scalars stay as they were written.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::render;
use yaml::scalar::resolve;
use yaml::tree::{Document, Id, Kind};

/// `value` as a block document, without a trailing newline. Where `document` has an unquoted scalar with the same
/// value at the same place, its text is used, because YAML readers disagree on the meaning of unquoted scalars.
pub fn emit(document: &Document, value: &Value, newline: &str) -> String {
    let emitter = Emitter { document, newline };
    let root = (!document.nodes.is_empty()).then_some(0);
    emitter.block(value, root, 0)
}

struct Emitter<'a> {
    document: &'a Document,
    newline: &'a str,
}

impl Emitter<'_> {
    /// A value at column `indent`, its first line not indented. `node` is the old node at its place.
    fn block(&self, value: &Value, node: Option<Id>, indent: usize) -> String {
        let node = node.map(|node| self.document.followed(node));
        match value {
            Value::Object(map) if !map.is_empty() => self.mapping(map, node, indent),
            Value::Array(items) if !items.is_empty() => self.sequence(items, node, indent),
            scalar => self.scalar(scalar, node),
        }
    }

    fn break_line(&self, indent: usize) -> String {
        format!("{}{}", self.newline, " ".repeat(indent))
    }

    fn mapping(&self, map: &Map<String, Value>, node: Option<Id>, indent: usize) -> String {
        let mut lines = Vec::new();
        let mut written = BTreeSet::new();
        let mut write = |name: &str, key: Option<Id>, node: Option<Id>| {
            let Some(value) = map.get(name).filter(|_| written.insert(name.to_owned())) else {
                return;
            };
            let key = self.key(name, key);
            lines.push(match value {
                Value::Object(fields) if !fields.is_empty() => {
                    let value = self.block(value, node, indent + 2);
                    format!("{key}:{}{value}", self.break_line(indent + 2))
                }
                Value::Array(items) if !items.is_empty() => {
                    let value = self.block(value, node, indent);
                    format!("{key}:{}{value}", self.break_line(indent))
                }
                value => format!("{key}: {}", self.block(value, node, indent)),
            });
        };
        // In the order of the text, followed by merged entries.
        for (name, key, value) in node.map(|node| self.entries(node)).unwrap_or_default() {
            write(&name, Some(key), Some(value));
        }
        for name in map.keys() {
            write(name, None, None);
        }
        lines.join(&self.break_line(indent))
    }

    fn sequence(&self, items: &[Value], node: Option<Id>, indent: usize) -> String {
        let nodes = match node.map(|node| &self.document.nodes[node].kind) {
            Some(Kind::Sequence { items: nodes }) if nodes.len() == items.len() => nodes.as_slice(),
            _ => &[],
        };
        let lines: Vec<_> = items
            .iter()
            .enumerate()
            .map(|(index, item)| {
                let item = self.block(item, nodes.get(index).copied(), indent + 2);
                format!("- {item}")
            })
            .collect();
        lines.join(&self.break_line(indent))
    }

    fn scalar(&self, value: &Value, node: Option<Id>) -> String {
        self.plain(node)
            .filter(|text| resolve(text) == *value)
            .map_or_else(|| render::inline(value), str::to_owned)
    }

    fn key(&self, name: &str, key: Option<Id>) -> String {
        self.plain(key)
            .map_or_else(|| render::string(name), str::to_owned)
    }

    /// The text of an unquoted scalar on one line.
    fn plain(&self, node: Option<Id>) -> Option<&str> {
        match &self.document.nodes[node?].kind {
            Kind::Scalar {
                text,
                plain: true,
                tag: None,
            } if !text.is_empty() && !text.contains(char::is_control) => Some(text),
            _ => None,
        }
    }

    /// The entries of a mapping, its own before those merged into it.
    fn entries(&self, node: Id) -> Vec<(String, Id, Id)> {
        let Kind::Mapping { entries, .. } = &self.document.nodes[node].kind else {
            return Vec::new();
        };
        let mut own = Vec::new();
        let mut merged = Vec::new();
        for &(key, value) in entries {
            if self.document.is_merge(key) {
                merged.extend(self.document.merge_sources(value).unwrap_or_default());
            } else if let Some(name) = self.document.key(key) {
                own.push((name, key, value));
            }
        }
        for source in merged {
            own.extend(self.entries(self.document.followed(source)));
        }
        own
    }
}
