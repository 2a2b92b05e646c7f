//! Converts YAML to the JSON that kubectl would send.

use serde_json::{Map, Value};

use super::scalar::{Scalar, tagged, typed};
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
    /// A key that is not a scalar, a scalar that is not of its tag's type, an invalid merge, or an alias inside the node
    /// that it refers to.
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
            Kind::Scalar { .. } => {
                let scalar = self
                    .document
                    .scalar(id)
                    .map_err(|e| self.malformed(id, e))?;
                let json = scalar.to_json();
                json.ok_or_else(|| self.malformed(id, "is not a number in JSON"))
            }
            Kind::Alias(target) => self.value(*target, depth + 1),
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
        for &(key, value) in entries {
            if self.document.is_merge(key) {
                let sources = self
                    .document
                    .merge_sources(value)
                    .ok_or_else(|| self.malformed(value, "only mappings can be merged (`<<`)"))?;
                // Merged at its position, so it overwrites earlier keys. In a list the first mapping takes
                // precedence.
                for &source in sources.iter().rev() {
                    if let Value::Object(source) = self.value(source, depth + 1)? {
                        map.extend(source);
                    }
                }
                continue;
            }
            let name = self
                .document
                .named(key)
                .map_err(|e| self.malformed(key, e))?;
            self.values += name.len() / TEXT;
            // If a key appears twice, the last value counts.
            drop(map.insert(name, self.value(value, depth + 1)?));
        }
        Ok(map)
    }
}

impl Document {
    fn scalar(&self, id: Id) -> Result<Scalar, String> {
        match &self.nodes[id].kind {
            Kind::Scalar {
                text,
                tag: Some(tag),
                ..
            } => tagged(text, tag),
            Kind::Scalar {
                text, plain: true, ..
            } => Ok(typed(text)),
            Kind::Scalar { text, .. } => Ok(Scalar::Text(text.clone())),
            _ => Err("a key must be a scalar".to_owned()),
        }
    }

    fn named(&self, id: Id) -> Result<String, String> {
        let key = self.scalar(self.followed(id))?;
        key.to_key()
            .ok_or_else(|| "a key must not be null, nor a number above 2^63".to_owned())
    }

    /// A key as in JSON; `None` if it is a collection or null.
    pub fn key(&self, id: Id) -> Option<String> {
        self.named(id).ok()
    }

    /// Whether a key is `<<`.
    pub fn is_merge(&self, id: Id) -> bool {
        match &self.nodes[id].kind {
            Kind::Scalar { text, plain, tag } if text == "<<" => match tag.as_deref() {
                None => *plain,
                Some(tag) => matches!(tag, "!" | "tag:yaml.org,2002:merge"),
            },
            _ => false,
        }
    }

    /// The mappings that `<<: value` merges; earlier ones take precedence. `None` if one is not a mapping.
    pub fn merge_sources(&self, value: Id) -> Option<Vec<Id>> {
        let sources = match &self.nodes[value].kind {
            Kind::Sequence { items } => items.clone(),
            _ => vec![value],
        };
        let is_mapping =
            |&id: &Id| matches!(self.nodes[self.followed(id)].kind, Kind::Mapping { .. });
        sources.iter().all(is_mapping).then_some(sources)
    }
}
