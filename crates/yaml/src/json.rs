//! Parses JSON objects into trees, because kubectl reads a text that begins with `{` as JSON: objects one after
//! another, with escapes that YAML does not have.

use serde_json::value::RawValue;

use crate::text::{Cursor, Fault, Mark};
use crate::tree::{DEPTH, Document, Id, Kind, Node};

/// Why a value can't be read.
pub enum Error {
    /// It is not JSON. kubectl then tries YAML.
    NotJson(Fault),
    /// It is JSON, but exceeds a limit.
    Exceeds(Fault),
}

type Result<T> = std::result::Result<T, Error>;

/// The value that begins at `start` of `text`, after white space, and where it ends. `None`: there is only white
/// space.
pub fn value(text: &str, start: Mark) -> Result<Option<(Document, Mark)>> {
    let mut parser = Parser::new(text, start);
    parser.skip_space();
    if parser.cursor.mark.at >= text.len() {
        return Ok(None);
    }
    let _root = parser.value(0)?;
    Ok(Some((parser.document, parser.cursor.mark)))
}

/// The first place at or after `start` that is not white space.
pub fn skip_space(text: &str, start: Mark) -> Mark {
    let mut parser = Parser::new(text, start);
    parser.skip_space();
    parser.cursor.mark
}

struct Parser<'a> {
    text: &'a str,
    cursor: Cursor<'a>,
    document: Document,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, start: Mark) -> Self {
        Self {
            text,
            cursor: Cursor::new(text, start),
            document: Document::default(),
        }
    }

    fn at(&self, what: impl Into<String>) -> Fault {
        Fault {
            line: self.cursor.mark.line,
            what: what.into(),
        }
    }

    fn fault(&self, what: impl Into<String>) -> Error {
        Error::NotJson(self.at(what))
    }

    fn skip_space(&mut self) {
        loop {
            match self.cursor.peek(0) {
                b' ' | b'\t' => self.cursor.skip(),
                b'\r' | b'\n' => self.cursor.skip_break(),
                _ => return,
            }
        }
    }

    fn add(&mut self, kind: Kind, start: Mark) -> Id {
        self.document.nodes.push(Node {
            span: start.at..self.cursor.mark.at,
            line: start.line,
            column: start.column,
            kind,
        });
        self.document.nodes.len() - 1
    }

    fn value(&mut self, depth: usize) -> Result<Id> {
        self.skip_space();
        match self.cursor.peek(0) {
            b'{' | b'[' if depth >= DEPTH => Err(Error::Exceeds(
                self.at(format!("nested deeper than {DEPTH}")),
            )),
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string(),
            _ => self.literal(),
        }
    }

    /// Skips a comma, or `end`. True: another item follows.
    fn another(&mut self, end: u8) -> Result<bool> {
        self.skip_space();
        let found = self.cursor.peek(0);
        if found != b',' && found != end {
            let what = format!("expected ',' or '{}' in JSON", char::from(end));
            return Err(self.fault(what));
        }
        self.cursor.skip();
        Ok(found == b',')
    }

    fn object(&mut self, depth: usize) -> Result<Id> {
        let start = self.cursor.mark;
        let id = self.add(Kind::Sequence { items: Vec::new() }, start);
        self.cursor.skip();
        self.skip_space();
        let mut entries = Vec::new();
        let mut more = self.cursor.peek(0) != b'}';
        if !more {
            self.cursor.skip();
        }
        while more {
            self.skip_space();
            if self.cursor.peek(0) != b'"' {
                return Err(self.fault("expected a key in double quotes in JSON"));
            }
            let key = self.string()?;
            self.skip_space();
            if self.cursor.peek(0) != b':' {
                return Err(self.fault("expected ':' after a key in JSON"));
            }
            self.cursor.skip();
            entries.push((key, self.value(depth + 1)?));
            more = self.another(b'}')?;
        }
        let node = &mut self.document.nodes[id];
        node.span.end = self.cursor.mark.at;
        node.kind = Kind::Mapping {
            flow: true,
            entries,
        };
        Ok(id)
    }

    fn array(&mut self, depth: usize) -> Result<Id> {
        let start = self.cursor.mark;
        let id = self.add(Kind::Sequence { items: Vec::new() }, start);
        self.cursor.skip();
        self.skip_space();
        let mut items = Vec::new();
        let mut more = self.cursor.peek(0) != b']';
        if !more {
            self.cursor.skip();
        }
        while more {
            items.push(self.value(depth + 1)?);
            more = self.another(b']')?;
        }
        let node = &mut self.document.nodes[id];
        node.span.end = self.cursor.mark.at;
        node.kind = Kind::Sequence { items };
        Ok(id)
    }

    fn string(&mut self) -> Result<Id> {
        let start = self.cursor.mark;
        self.cursor.skip();
        let mut text = String::new();
        loop {
            match self.cursor.peek(0) {
                b'"' => break,
                b'\\' => self.escape(&mut text)?,
                0..0x20 => return Err(self.fault("control character or end of text in a string")),
                _ => self.cursor.read(&mut text),
            }
        }
        self.cursor.skip();
        let kind = Kind::Scalar {
            text,
            plain: false,
            tag: None,
        };
        Ok(self.add(kind, start))
    }

    fn escape(&mut self, text: &mut String) -> Result<()> {
        let character = match self.cursor.peek(1) {
            same @ (b'"' | b'\\' | b'/') => char::from(same),
            b'b' => '\x08',
            b'f' => '\x0c',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.unit()?;
                // As in Go, half of a surrogate pair becomes U+FFFD.
                let second = if (0xd800..0xdc00).contains(&first) && self.cursor.is_at("\\u") {
                    let mark = self.cursor.mark;
                    let unit = self.unit()?;
                    if !(0xdc00..0xe000).contains(&unit) {
                        self.cursor.mark = mark;
                    }
                    Some(unit)
                } else {
                    None
                };
                let units = std::iter::once(first).chain(second);
                let decoded = char::decode_utf16(units).next();
                let character = decoded.and_then(std::result::Result::ok);
                text.push(character.unwrap_or(char::REPLACEMENT_CHARACTER));
                return Ok(());
            }
            _ => return Err(self.fault("unknown escape in a string")),
        };
        self.cursor.skip();
        self.cursor.skip();
        text.push(character);
        Ok(())
    }

    /// `\uXXXX`.
    fn unit(&mut self) -> Result<u16> {
        let at = self.cursor.mark.at;
        let digits = self.text.get(at + 2..at + 6).unwrap_or_default();
        let hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        let unit = u16::from_str_radix(digits, 16).ok().filter(|_| hex);
        let unit = unit.ok_or_else(|| self.fault("expected four hexadecimal digits after \\u"))?;
        for _ in 0..6 {
            self.cursor.skip();
        }
        Ok(unit)
    }

    /// A number, a boolean or null.
    fn literal(&mut self) -> Result<Id> {
        let start = self.cursor.mark;
        let is_part = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
        while is_part(self.cursor.peek(0)) {
            self.cursor.skip();
        }
        let text = self.text.get(start.at..self.cursor.mark.at);
        let text = text.unwrap_or_default();
        if serde_json::from_str::<&RawValue>(text).is_err() {
            return Err(self.fault(format!("{text:?} is not a JSON value")));
        }
        if text.parse().is_ok_and(f64::is_infinite) {
            return Err(Error::Exceeds(self.at(format!("{text} is too large"))));
        }
        let kind = Kind::Scalar {
            text: text.to_owned(),
            plain: true,
            tag: None,
        };
        Ok(self.add(kind, start))
    }
}
