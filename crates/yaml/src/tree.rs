//! A YAML document as a tree, with the place of each node in the text.

use std::collections::HashMap;
use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

/// Maximum nesting depth, the same as for JSON in requests to the API server.
pub const DEPTH: usize = 128;

/// A node of a document, by its index in [`Document::nodes`].
pub type Id = usize;

/// A YAML document.
#[derive(Debug, Default)]
pub struct Document {
    /// All nodes, parents before children.
    pub nodes: Vec<Node>,
    /// Nodes with an anchor. The first node is the root.
    pub anchors: HashMap<usize, Id>,
}

/// A node and its place.
#[derive(Debug)]
pub struct Node {
    /// Its bytes in the text, including anchor and tag if they are on the same line. For a block
    /// collection: from its first key or dash to the end of its last value.
    pub span: Range<usize>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 0.
    pub column: usize,
    /// What it is.
    pub kind: Kind,
}

/// What a node is.
#[derive(Debug)]
pub enum Kind {
    /// A scalar.
    Scalar {
        /// Its content.
        text: String,
        /// Whether it is unquoted, so that its content determines its type.
        plain: bool,
        /// Its tag (`!!str`).
        tag: Option<Tag>,
    },
    /// `*name`, with the anchor's number.
    Alias(usize),
    /// A list.
    Sequence {
        /// Its items.
        items: Vec<Id>,
    },
    /// A mapping.
    Mapping {
        /// Whether it is written `{...}`, as in JSON.
        flow: bool,
        /// Keys and values, in order.
        entries: Vec<(Id, Id)>,
    },
}

/// The text is not valid YAML, or is YAML that kubectl rejects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("document {document}, line {line}: {what}")]
pub struct Malformed {
    /// The number of the document, from 1.
    pub document: usize,
    /// Line of the file, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// Reads all documents of a text.
///
/// # Errors
/// The first place that is not valid.
pub fn parse(text: &str) -> Result<Vec<Document>, Malformed> {
    let mut builder = Builder {
        text,
        bytes: text.char_indices().map(|(byte, _)| byte).collect(),
        documents: Vec::new(),
        open: Vec::new(),
    };
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => builder.event(event, span)?,
            Err(error) => {
                return Err(builder.malformed(error.marker().line(), error.info()));
            }
        }
    }
    Ok(builder.documents)
}

struct Builder<'a> {
    text: &'a str,
    /// The byte offset of each character, because the parser counts characters.
    bytes: Vec<usize>,
    documents: Vec<Document>,
    /// Collections that are not closed yet; for a mapping also the key whose value comes next.
    open: Vec<(Id, Option<Id>)>,
}

impl Builder<'_> {
    fn malformed(&self, line: usize, what: &str) -> Malformed {
        Malformed {
            document: self.documents.len().max(1),
            line,
            what: what.to_owned(),
        }
    }

    fn byte(&self, character: usize) -> usize {
        self.bytes
            .get(character)
            .copied()
            .unwrap_or(self.text.len())
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Malformed> {
        let opens = |c: char| {
            let upto = &self.text[..self.byte(span.end.index())];
            !span.is_empty() && upto.ends_with(c)
        };
        match event {
            Event::DocumentStart(_) => self.documents.push(Document::default()),
            Event::Scalar(text, style, anchor, tag) => {
                let kind = Kind::Scalar {
                    text: text.into_owned(),
                    plain: style == ScalarStyle::Plain,
                    tag: tag.map(|tag| tag.into_owned()),
                };
                self.add(kind, span, anchor)?;
            }
            Event::Alias(anchor) => drop(self.add(Kind::Alias(anchor), span, 0)?),
            Event::SequenceStart(anchor, _) => {
                let id = self.add(Kind::Sequence { items: Vec::new() }, span, anchor)?;
                self.open.push((id, None));
            }
            Event::MappingStart(anchor, _) => {
                let kind = Kind::Mapping {
                    flow: opens('{'),
                    entries: Vec::new(),
                };
                let id = self.add(kind, span, anchor)?;
                self.open.push((id, None));
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        if self.open.len() > DEPTH {
            let what = format!("nested deeper than {DEPTH}");
            return Err(self.malformed(span.start.line(), &what));
        }
        Ok(())
    }

    fn add(&mut self, kind: Kind, span: Span, anchor: usize) -> Result<Id, Malformed> {
        let mut bytes = self.byte(span.start.index())..self.byte(span.end.index());
        // The span of a block scalar extends beyond the end of its last line.
        let trimmed = self
            .text
            .get(bytes.clone())
            .map_or(0, |t| t.trim_end().len());
        bytes.end = bytes.start + trimmed;
        let node = Node {
            span: bytes,
            line: span.start.line(),
            column: span.start.col(),
            kind,
        };
        let Some(document) = self.documents.last_mut() else {
            return Err(self.malformed(span.start.line(), "a node outside of any document"));
        };
        let id = document.nodes.len();
        document.nodes.push(node);
        if anchor != 0 {
            document.anchors.insert(anchor, id);
        }
        let Some((parent, key)) = self.open.last_mut() else {
            return Ok(id);
        };
        match &mut document.nodes[*parent].kind {
            Kind::Sequence { items } => items.push(id),
            Kind::Mapping { entries, .. } => match key.take() {
                Some(key) => entries.push((key, id)),
                None => *key = Some(id),
            },
            Kind::Scalar { .. } | Kind::Alias(_) => {}
        }
        Ok(id)
    }

    fn close(&mut self, span: Span) {
        let flow_end = (!span.is_empty()).then(|| self.byte(span.end.index()));
        let (Some((id, _)), Some(document)) = (self.open.pop(), self.documents.last_mut()) else {
            return;
        };
        let block_end = match &document.nodes[id].kind {
            Kind::Sequence { items } => items.last().map(|&last| document.nodes[last].span.end),
            Kind::Mapping { entries, .. } => entries
                .last()
                .map(|&(key, value)| document.value_end(self.text, key, value)),
            Kind::Scalar { .. } | Kind::Alias(_) => None,
        };
        let node = &mut document.nodes[id];
        node.span.end = flow_end.or(block_end).unwrap_or(node.span.end);
    }
}

impl Document {
    /// Where the value of `key` may begin: after its colon. None if the key is written in the long form
    /// (`? key`).
    pub fn after_colon(&self, text: &str, key: Id) -> Option<usize> {
        let end = self.nodes[key].span.end;
        let rest = text[end..].trim_start_matches([' ', '\t']);
        rest.starts_with(':').then(|| text.len() - rest.len() + 1)
    }

    /// Where the value of `key` ends.
    pub fn value_end(&self, text: &str, key: Id, value: Id) -> usize {
        let end = self.nodes[value].span.end;
        // A null without text has the place of its key.
        self.after_colon(text, key)
            .map_or(end, |colon| end.max(colon))
    }

    /// The node that an alias refers to, or the node itself.
    pub fn followed(&self, id: Id) -> Id {
        match &self.nodes[id].kind {
            Kind::Alias(anchor) => self.anchors.get(anchor).copied().unwrap_or(id),
            _ => id,
        }
    }
}
