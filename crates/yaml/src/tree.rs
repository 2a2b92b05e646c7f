//! A YAML document as a tree, with the place of each node in the text.

use std::ops::Range;

use crate::stream;

/// Maximum nesting depth, the same as for JSON in requests to the API server.
pub const DEPTH: usize = 128;

/// A node of a document, by its index in [`Document::nodes`].
pub type Id = usize;

/// A YAML document.
#[derive(Debug, Default)]
pub struct Document {
    /// All nodes, parents before children. The first node is the root.
    pub nodes: Vec<Node>,
}

/// A node and its place.
#[derive(Debug)]
pub struct Node {
    /// Its bytes in the text, including anchor and tag. For a block collection: from its first key or dash to the end
    /// of its last value.
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
        /// Its tag in full (`tag:yaml.org,2002:str` for `!!str`).
        tag: Option<String>,
    },
    /// `*name`: another node.
    Alias(Id),
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
    let numbered = stream::parts(text).into_iter().zip(1..);
    numbered
        .map(|(part, document)| {
            part.document.map_err(|fault| Malformed {
                document,
                line: fault.line,
                what: fault.what,
            })
        })
        .collect()
}

impl Document {
    /// Where the value of `key` may begin: after its colon. `None` if the key is written in the long form
    /// (`? key`).
    pub fn after_colon(&self, text: &str, key: Id) -> Option<usize> {
        let end = self.nodes[key].span.end;
        let rest = text.get(end..)?.trim_start_matches([' ', '\t']);
        rest.starts_with(':').then(|| text.len() - rest.len() + 1)
    }

    /// Where the value of `key` ends.
    pub fn value_end(&self, text: &str, key: Id, value: Id) -> usize {
        let end = self.nodes[value].span.end;
        // A null without text has no place of its own.
        self.after_colon(text, key)
            .map_or(end, |colon| end.max(colon))
    }

    /// The node that an alias refers to, or the node itself.
    pub fn followed(&self, id: Id) -> Id {
        match self.nodes[id].kind {
            Kind::Alias(target) => target,
            _ => id,
        }
    }
}
