//! Parses the tokens of a YAML document into a tree, by the grammar of libyaml.

use std::collections::HashMap;

use crate::scan::Scanner;
use crate::text::{Fault, Mark};
use crate::token::{Token, TokenKind};
use crate::tree::{DEPTH, Document, Id, Kind, Node};

/// The prefix that `!!` abbreviates.
const CORE: &str = "tag:yaml.org,2002:";

/// Parses the first document of `text` after `start`; the rest is ignored, as by kubectl. Without a node if there is
/// none.
pub fn document(text: &str, start: Mark) -> Result<Document, Fault> {
    let mut parser = Parser {
        text,
        scanner: Scanner::new(text, start),
        document: Document::default(),
        anchors: HashMap::new(),
        tags: HashMap::new(),
        depth: 0,
    };
    parser.document()?;
    Ok(parser.document)
}

struct Parser<'a> {
    text: &'a str,
    scanner: Scanner<'a>,
    document: Document,
    anchors: HashMap<String, Id>,
    /// The handles of `%TAG`.
    tags: HashMap<String, String>,
    depth: usize,
}

/// What precedes the content of a node.
struct Properties {
    anchor: Option<String>,
    tag: Option<String>,
    start: Mark,
    end: Mark,
}

impl Parser<'_> {
    fn document(&mut self) -> Result<(), Fault> {
        let explicit = match self.scanner.peek()?.kind {
            TokenKind::End => return Ok(()),
            TokenKind::Version(..) | TokenKind::TagDirective(..) | TokenKind::DocumentStart => true,
            _ => false,
        };
        if explicit {
            self.directives()?;
            let start = self.scanner.next()?;
            if start.kind != TokenKind::DocumentStart {
                return Err(wrong(&start, "did not find expected <document start>"));
            }
            if matches!(
                self.scanner.peek()?.kind,
                TokenKind::DocumentStart
                    | TokenKind::DocumentEnd
                    | TokenKind::Version(..)
                    | TokenKind::TagDirective(..)
                    | TokenKind::End
            ) {
                return Ok(());
            }
        }
        let _root = self.node(true, false)?;
        // What follows is ignored, but its first token must be valid.
        self.scanner.peek()?;
        Ok(())
    }

    fn directives(&mut self) -> Result<(), Fault> {
        let mut versions = 0;
        loop {
            match self.scanner.peek()?.kind {
                TokenKind::Version(..) | TokenKind::TagDirective(..) => {}
                _ => return Ok(()),
            }
            let token = self.scanner.next()?;
            match &token.kind {
                TokenKind::Version(1, 1) => {
                    versions += 1;
                    if versions > 1 {
                        return Err(wrong(&token, "found duplicate %YAML directive"));
                    }
                }
                TokenKind::Version(..) => {
                    return Err(wrong(
                        &token,
                        "found incompatible YAML document: must be %YAML 1.1",
                    ));
                }
                TokenKind::TagDirective(handle, prefix) => {
                    let before = self.tags.insert(handle.clone(), prefix.clone());
                    if before.is_some() {
                        return Err(wrong(&token, "found duplicate %TAG directive"));
                    }
                }
                _ => {}
            }
        }
    }

    /// A node. `block`: in block style; `indentless`: whether it may be a list whose dashes are in the column of its
    /// key.
    fn node(&mut self, block: bool, indentless: bool) -> Result<Id, Fault> {
        if let TokenKind::Alias(_) = self.scanner.peek()?.kind {
            let token = self.scanner.next()?;
            let TokenKind::Alias(name) = &token.kind else {
                return Err(wrong(&token, "no alias"));
            };
            let Some(&target) = self.anchors.get(name) else {
                let what = format!("unknown anchor '{name}' referenced");
                return Err(wrong(&token, what));
            };
            return Ok(self.add(Kind::Alias(target), token.start, token.end));
        }
        let properties = self.properties()?;
        let token = self.scanner.peek()?;
        let (start, end) = (properties.start, token.end);
        match &token.kind {
            TokenKind::BlockEntry if indentless => {
                self.collection(&properties, end, |parser, id| {
                    parser.indentless_sequence(id)
                })
            }
            TokenKind::Scalar(..) => {
                let token = self.scanner.next()?;
                let TokenKind::Scalar(text, plain) = token.kind else {
                    return Err(wrong(&token, "no scalar"));
                };
                Ok(self.scalar(text, plain, properties, start, token.end))
            }
            TokenKind::FlowSequence => {
                self.collection(&properties, end, |parser, id| parser.flow_sequence(id))
            }
            TokenKind::FlowMapping => {
                self.collection(&properties, end, |parser, id| parser.flow_mapping(id))
            }
            TokenKind::BlockSequence if block => {
                self.collection(&properties, end, |parser, id| parser.block_sequence(id))
            }
            TokenKind::BlockMapping if block => {
                self.collection(&properties, end, |parser, id| parser.block_mapping(id))
            }
            _ if properties.anchor.is_some() || properties.tag.is_some() => {
                let end = properties.end;
                Ok(self.scalar(String::new(), true, properties, start, end))
            }
            _ => {
                let style = if block { "block" } else { "flow" };
                let what =
                    format!("while parsing a {style} node, did not find expected node content");
                Err(wrong(token, what))
            }
        }
    }

    /// Anchor and tag, in any order.
    fn properties(&mut self) -> Result<Properties, Fault> {
        let start = self.scanner.peek()?.start;
        let mut properties = Properties {
            anchor: None,
            tag: None,
            start,
            end: start,
        };
        loop {
            match &self.scanner.peek()?.kind {
                TokenKind::Anchor(_) if properties.anchor.is_none() => {}
                TokenKind::Tag(..) if properties.tag.is_none() => {}
                _ => return Ok(properties),
            }
            let token = self.scanner.next()?;
            properties.end = token.end;
            match &token.kind {
                TokenKind::Anchor(name) => properties.anchor = Some(name.clone()),
                TokenKind::Tag(handle, suffix) => {
                    let prefix = match (self.tags.get(handle), handle.as_str()) {
                        (Some(prefix), _) => prefix.as_str(),
                        (None, "" | "!") => handle,
                        (None, "!!") => CORE,
                        (None, _) => return Err(wrong(&token, "found undefined tag handle")),
                    };
                    properties.tag = Some(format!("{prefix}{suffix}"));
                }
                _ => {}
            }
        }
    }

    fn add(&mut self, kind: Kind, start: Mark, end: Mark) -> Id {
        // Nothing but white space is after a block scalar's last line.
        let text = self.text.get(start.at..end.at).unwrap_or_default();
        self.document.nodes.push(Node {
            span: start.at..start.at + text.trim_end().len(),
            line: start.line,
            column: start.column,
            kind,
        });
        self.document.nodes.len() - 1
    }

    fn scalar(
        &mut self,
        text: String,
        plain: bool,
        properties: Properties,
        start: Mark,
        end: Mark,
    ) -> Id {
        let kind = Kind::Scalar {
            text,
            plain,
            tag: properties.tag,
        };
        let id = self.add(kind, start, end);
        if let Some(anchor) = properties.anchor {
            let _ = self.anchors.insert(anchor, id);
        }
        id
    }

    /// A null without text.
    fn empty(&mut self, mark: Mark) -> Id {
        let kind = Kind::Scalar {
            text: String::new(),
            plain: true,
            tag: None,
        };
        self.add(kind, mark, mark)
    }

    /// A list or mapping; `content` parses it and returns where it ends, if an indicator ends it.
    fn collection(
        &mut self,
        properties: &Properties,
        end: Mark,
        content: impl FnOnce(&mut Self, Id) -> Result<Option<Mark>, Fault>,
    ) -> Result<Id, Fault> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(Fault {
                line: properties.start.line,
                what: format!("nested deeper than {DEPTH}"),
            });
        }
        let id = self.add(Kind::Sequence { items: Vec::new() }, properties.start, end);
        if let Some(anchor) = &properties.anchor {
            let _ = self.anchors.insert(anchor.clone(), id);
        }
        let ended = content(self, id)?;
        self.depth -= 1;
        let end = match (ended, &self.document.nodes[id].kind) {
            (Some(end), _) => Some(end.at),
            (None, Kind::Sequence { items }) => {
                items.last().map(|&last| self.document.nodes[last].span.end)
            }
            (None, Kind::Mapping { entries, .. }) => entries
                .last()
                .map(|&(key, value)| self.document.value_end(self.text, key, value)),
            (None, _) => None,
        };
        let span = &mut self.document.nodes[id].span;
        span.end = end.unwrap_or(span.end).max(span.start);
        Ok(id)
    }

    fn set(&mut self, id: Id, kind: Kind) {
        self.document.nodes[id].kind = kind;
    }

    /// A node in block style, or a null if the next token is one of `none`.
    fn block_value(
        &mut self,
        mark: Mark,
        indentless: bool,
        none: &[TokenKind],
    ) -> Result<Id, Fault> {
        if none.contains(&self.scanner.peek()?.kind) {
            Ok(self.empty(mark))
        } else {
            self.node(true, indentless)
        }
    }

    fn block_sequence(&mut self, id: Id) -> Result<Option<Mark>, Fault> {
        let _start = self.scanner.next()?;
        let mut items = Vec::new();
        loop {
            let token = self.scanner.next()?;
            match token.kind {
                TokenKind::BlockEntry => {
                    let none = [TokenKind::BlockEntry, TokenKind::BlockEnd];
                    items.push(self.block_value(token.end, false, &none)?);
                }
                TokenKind::BlockEnd => break,
                _ => {
                    let what =
                        "while parsing a block collection, did not find expected '-' indicator";
                    return Err(wrong(&token, what));
                }
            }
        }
        self.set(id, Kind::Sequence { items });
        Ok(None)
    }

    fn indentless_sequence(&mut self, id: Id) -> Result<Option<Mark>, Fault> {
        let mut items = Vec::new();
        while self.scanner.peek()?.kind == TokenKind::BlockEntry {
            let token = self.scanner.next()?;
            let none = [
                TokenKind::BlockEntry,
                TokenKind::Key,
                TokenKind::Value,
                TokenKind::BlockEnd,
            ];
            items.push(self.block_value(token.end, false, &none)?);
        }
        self.set(id, Kind::Sequence { items });
        Ok(None)
    }

    fn block_mapping(&mut self, id: Id) -> Result<Option<Mark>, Fault> {
        let none = [TokenKind::Key, TokenKind::Value, TokenKind::BlockEnd];
        let _start = self.scanner.next()?;
        let mut entries = Vec::new();
        loop {
            let token = self.scanner.next()?;
            match token.kind {
                TokenKind::Key => {
                    let key = self.block_value(token.end, true, &none)?;
                    let next = self.scanner.peek()?;
                    let value = if next.kind == TokenKind::Value {
                        let colon = self.scanner.next()?;
                        self.block_value(colon.end, true, &none)?
                    } else {
                        let mark = self.end_of(key);
                        self.empty(mark)
                    };
                    entries.push((key, value));
                }
                TokenKind::BlockEnd => break,
                _ => {
                    let what = "while parsing a block mapping, did not find expected key";
                    return Err(wrong(&token, what));
                }
            }
        }
        self.set(
            id,
            Kind::Mapping {
                flow: false,
                entries,
            },
        );
        Ok(None)
    }

    fn end_of(&self, id: Id) -> Mark {
        let node = &self.document.nodes[id];
        Mark {
            at: node.span.end,
            line: node.line,
            column: node.column,
        }
    }

    /// A node in flow style, or a null if the next token is a comma, a colon or `end`.
    fn flow_value(&mut self, mark: Mark, colon: bool, end: &TokenKind) -> Result<Id, Fault> {
        let next = &self.scanner.peek()?.kind;
        if *next == TokenKind::FlowEntry || next == end || (colon && *next == TokenKind::Value) {
            Ok(self.empty(mark))
        } else {
            self.node(false, false)
        }
    }

    /// What follows a key in flow style: `: value`, or nothing.
    fn flow_pair_value(&mut self, key: Id, end: &TokenKind) -> Result<Id, Fault> {
        if self.scanner.peek()?.kind == TokenKind::Value {
            let colon = self.scanner.next()?;
            self.flow_value(colon.end, false, end)
        } else {
            let mark = self.end_of(key);
            Ok(self.empty(mark))
        }
    }

    /// Skips the comma before an item that is not the first. False at the end of the collection.
    fn next_item(&mut self, first: bool, end: &TokenKind, what: &str) -> Result<bool, Fault> {
        if self.scanner.peek()?.kind == *end {
            return Ok(false);
        }
        if !first {
            let token = self.scanner.next()?;
            if token.kind != TokenKind::FlowEntry {
                return Err(wrong(&token, what));
            }
        }
        Ok(self.scanner.peek()?.kind != *end)
    }

    fn flow_sequence(&mut self, id: Id) -> Result<Option<Mark>, Fault> {
        const END: TokenKind = TokenKind::FlowSequenceEnd;
        let what = "while parsing a flow sequence, did not find expected ',' or ']'";
        let _start = self.scanner.next()?;
        let mut items = Vec::new();
        while self.next_item(items.is_empty(), &END, what)? {
            if self.scanner.peek()?.kind != TokenKind::Key {
                items.push(self.node(false, false)?);
                continue;
            }
            // `[key: value]` is a list with a mapping.
            let token = self.scanner.next()?;
            let pair = self.add(Kind::Sequence { items: Vec::new() }, token.start, token.end);
            let next = self.scanner.peek()?.kind.clone();
            let key = if [TokenKind::Value, TokenKind::FlowEntry, END].contains(&next) {
                // libyaml accepts this token too.
                let taken = self.scanner.next()?;
                self.empty(taken.end)
            } else {
                self.node(false, false)?
            };
            let value = self.flow_pair_value(key, &END)?;
            self.document.nodes[pair].span.end = self.document.value_end(self.text, key, value);
            let entries = vec![(key, value)];
            self.set(
                pair,
                Kind::Mapping {
                    flow: true,
                    entries,
                },
            );
            items.push(pair);
        }
        let end = self.scanner.next()?.end;
        self.set(id, Kind::Sequence { items });
        Ok(Some(end))
    }

    fn flow_mapping(&mut self, id: Id) -> Result<Option<Mark>, Fault> {
        const END: TokenKind = TokenKind::FlowMappingEnd;
        let what = "while parsing a flow mapping, did not find expected ',' or '}'";
        let _start = self.scanner.next()?;
        let mut entries = Vec::new();
        while self.next_item(entries.is_empty(), &END, what)? {
            if self.scanner.peek()?.kind == TokenKind::Key {
                let token = self.scanner.next()?;
                let key = self.flow_value(token.end, true, &END)?;
                let value = self.flow_pair_value(key, &END)?;
                entries.push((key, value));
            } else {
                let key = self.node(false, false)?;
                let mark = self.end_of(key);
                entries.push((key, self.empty(mark)));
            }
        }
        let end = self.scanner.next()?.end;
        let flow = true;
        self.set(id, Kind::Mapping { flow, entries });
        Ok(Some(end))
    }
}

fn wrong(token: &Token, what: impl Into<String>) -> Fault {
    Fault {
        line: token.start.line,
        what: what.into(),
    }
}
