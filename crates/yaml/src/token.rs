//! Tokens of YAML.

use crate::text::Mark;

/// A token and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Where it begins.
    pub start: Mark,
    /// Where it ends.
    pub end: Mark,
}

/// What a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// The end of the text.
    End,
    /// `%YAML major.minor`.
    Version(u8, u8),
    /// `%TAG handle prefix`.
    TagDirective(String, String),
    /// `---`.
    DocumentStart,
    /// `...`.
    DocumentEnd,
    /// Before the first `-` of a list in block style.
    BlockSequence,
    /// Before the first key of a mapping in block style.
    BlockMapping,
    /// After the last item or value of a collection in block style.
    BlockEnd,
    /// `[`.
    FlowSequence,
    /// `]`.
    FlowSequenceEnd,
    /// `{`.
    FlowMapping,
    /// `}`.
    FlowMappingEnd,
    /// `- `.
    BlockEntry,
    /// `,`.
    FlowEntry,
    /// Before a key.
    Key,
    /// `:`.
    Value,
    /// `*name`.
    Alias(String),
    /// `&name`.
    Anchor(String),
    /// `handle!suffix`.
    Tag(String, String),
    /// A scalar, and whether it is unquoted.
    Scalar(String, bool),
}
