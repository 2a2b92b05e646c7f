//! Converts YAML to the JSON that kubectl would send.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::scalar::resolve;
use super::tree::{DEPTH, Document, Id, Kind, Malformed};

/// Maximum number of values in a document with its aliases resolved; a long text counts as several.
const LIMIT: usize = 1_000_000;
/// How many bytes of text count as one value.
const TEXT: usize = 64;

impl Document {
    /// The document as JSON: aliases and merge keys resolved, keys converted to strings. `number` is the document's
    /// number, from 1, for errors.
    ///
    /// # Errors
    /// A key that appears twice or is not a scalar, an invalid merge, or an alias inside the node that it refers to.
    pub fn to_json(&self, number: usize) -> Result<Value, Malformed> {
        if self.nodes.is_empty() {
            return Ok(Value::Null);
        }
        let mut reader = Reader {
            document: self,
            number,
            values: 0,
        };
        reader.value(0, 0)
    }
}

struct Reader<'a> {
    document: &'a Document,
    number: usize,
    values: usize,
}

impl Reader<'_> {
    fn malformed(&self, id: Id, what: impl Into<String>) -> Malformed {
        Malformed {
            document: self.number,
            line: self.document.nodes[id].line,
            what: what.into(),
        }
    }

    fn text_len(&self, id: Id) -> usize {
        match &self.document.nodes[id].kind {
            Kind::Scalar { text, .. } => text.len(),
            _ => 0,
        }
    }

    fn value(&mut self, id: Id, depth: usize) -> Result<Value, Malformed> {
        self.values += 1 + self.text_len(id) / TEXT;
        if self.values > LIMIT {
            return Err(self.malformed(
                id,
                format!("aliases expand this to more than {LIMIT} values"),
            ));
        }
        if depth > DEPTH {
            return Err(self.malformed(id, format!("nested deeper than {DEPTH}, or in itself")));
        }
        match &self.document.nodes[id].kind {
            Kind::Scalar { text, plain, tag } => {
                let core = tag.as_ref().filter(|tag| tag.is_yaml_core_schema());
                let typed = match core.map(|tag| tag.suffix.as_str()) {
                    Some("int" | "float" | "bool" | "null") => true,
                    Some(_) => false,
                    None => *plain && tag.is_none(),
                };
                Ok(if typed {
                    resolve(text)
                } else {
                    Value::String(text.clone())
                })
            }
            Kind::Alias(_) => match self.document.followed(id) {
                target if target == id => Err(self.malformed(id, "unknown anchor")),
                target => self.value(target, depth + 1),
            },
            Kind::Sequence { items } => items
                .iter()
                .map(|&item| self.value(item, depth + 1))
                .collect(),
            Kind::Mapping { entries, .. } => self.mapping(entries, depth).map(Value::Object),
        }
    }

    fn mapping(
        &mut self,
        entries: &[(Id, Id)],
        depth: usize,
    ) -> Result<Map<String, Value>, Malformed> {
        let mut map = Map::new();
        let mut merged = Vec::new();
        let mut seen = HashSet::new();
        for &(key, value) in entries {
            if self.document.is_merge(key) {
                merged.push(value);
                continue;
            }
            let name = self.key(key)?;
            self.values += name.len() / TEXT;
            if !seen.insert(name.clone()) {
                return Err(self.malformed(key, format!("key {name:?} appears twice")));
            }
            map.insert(name, self.value(value, depth + 1)?);
        }
        for value in merged {
            for source in self.document.merge_sources(value) {
                let Value::Object(source) = self.value(source, depth + 1)? else {
                    return Err(self.malformed(value, "only mappings can be merged (`<<`)"));
                };
                for (name, value) in source {
                    map.entry(name).or_insert(value);
                }
            }
        }
        Ok(map)
    }

    fn key(&self, id: Id) -> Result<String, Malformed> {
        self.document
            .key(id)
            .ok_or_else(|| self.malformed(id, "a key must be a scalar"))
    }
}

impl Document {
    /// A key as in JSON; none if it is a collection.
    pub fn key(&self, id: Id) -> Option<String> {
        match &self.nodes[self.followed(id)].kind {
            Kind::Scalar {
                text, plain: true, ..
            } => Some(match resolve(text) {
                Value::String(text) => text,
                other => other.to_string(),
            }),
            Kind::Scalar { text, .. } => Some(text.clone()),
            _ => None,
        }
    }

    /// Whether a key is `<<`.
    pub fn is_merge(&self, id: Id) -> bool {
        matches!(&self.nodes[id].kind, Kind::Scalar { text, plain: true, .. } if text == "<<")
    }

    /// The mappings that `<<: value` merges; earlier ones take precedence.
    pub fn merge_sources(&self, value: Id) -> Vec<Id> {
        let value = self.followed(value);
        match &self.nodes[value].kind {
            Kind::Sequence { items } => items.clone(),
            _ => vec![value],
        }
    }
}
