//! Splits a YAML text into tokens, by the rules of libyaml and its translation to Go, which kubectl uses.
//!
//! A key is recognized by the colon after it. Until then the scanner keeps in mind where a key may have begun
//! ([`PossibleKey`]), one place for each nesting level of `[` and `{`.

mod scalars;
mod words;

use std::collections::VecDeque;

use crate::text::{Cursor, Fault, Mark};
use crate::token::{Token, TokenKind};
use crate::tree::DEPTH;

/// Maximum length of a key that is not marked by `?`, in bytes.
const KEY_MAX: usize = 1024;

/// Where a key may have begun.
#[derive(Clone, Copy, Default)]
struct PossibleKey {
    possible: bool,
    /// Whether nothing but a key may be here: it is the first token of a line in the column of other keys.
    required: bool,
    /// The number of its first token.
    token: usize,
    mark: Mark,
}

/// The tokens of a text.
pub struct Scanner<'a> {
    cursor: Cursor<'a>,
    /// Tokens that are scanned, but not taken.
    tokens: VecDeque<Token>,
    /// How many tokens were taken.
    taken: usize,
    /// Column of the innermost collection in block style; -1 outside of all.
    indent: isize,
    /// The columns of those around it.
    indents: Vec<isize>,
    /// Whether a key without `?` may begin here.
    key_allowed: bool,
    /// For each flow collection and, first, for block style.
    keys: Vec<PossibleKey>,
}

fn signed(column: usize) -> isize {
    isize::try_from(column).unwrap_or(isize::MAX)
}

impl<'a> Scanner<'a> {
    /// Begins at `start` of `text`.
    pub fn new(text: &'a str, start: Mark) -> Self {
        Self {
            cursor: Cursor::new(text, start),
            tokens: VecDeque::new(),
            taken: 0,
            indent: -1,
            indents: Vec::new(),
            key_allowed: true,
            keys: vec![PossibleKey::default()],
        }
    }

    /// The next token. After [`TokenKind::End`] there is none.
    pub fn peek(&mut self) -> Result<&Token, Fault> {
        self.fetch()?;
        let mark = self.cursor.mark;
        self.tokens
            .front()
            .ok_or_else(|| fault(mark, "the text has ended"))
    }

    /// Takes the next token.
    pub fn next(&mut self) -> Result<Token, Fault> {
        self.fetch()?;
        self.taken += 1;
        let mark = self.cursor.mark;
        self.tokens
            .pop_front()
            .ok_or_else(|| fault(mark, "the text has ended"))
    }

    /// Scans until the next token is final: a key may still have to be inserted before it.
    fn fetch(&mut self) -> Result<(), Fault> {
        loop {
            if !self.tokens.is_empty() {
                self.forget_old_keys()?;
                let first = |key: &PossibleKey| key.possible && key.token == self.taken;
                if !self.keys.iter().any(first) {
                    return Ok(());
                }
            }
            self.fetch_one()?;
        }
    }

    fn fetch_one(&mut self) -> Result<(), Fault> {
        self.skip_to_token();
        self.forget_old_keys()?;
        self.unroll(signed(self.cursor.mark.column));
        if self.cursor.is_end() {
            // The last line ends here, so that no key can begin on it.
            if self.cursor.mark.column != 0 {
                self.cursor.mark.line += 1;
                self.cursor.mark.column = 0;
            }
            self.unroll(-1);
            self.drop_key()?;
            self.key_allowed = false;
            return self.indicator(TokenKind::End, 0);
        }
        if self.cursor.mark.column == 0 {
            if self.cursor.peek(0) == b'%' {
                self.unroll(-1);
                self.drop_key()?;
                self.key_allowed = false;
                let token = self.directive()?;
                self.tokens.push_back(token);
                return Ok(());
            }
            for (word, kind) in [
                ("---", TokenKind::DocumentStart),
                ("...", TokenKind::DocumentEnd),
            ] {
                if self.cursor.is_at(word) && self.cursor.is_gap(3) {
                    self.unroll(-1);
                    self.drop_key()?;
                    self.key_allowed = false;
                    return self.indicator(kind, 3);
                }
            }
        }
        let flow = self.is_flow();
        let gap = self.cursor.is_gap(1);
        match self.cursor.peek(0) {
            b'[' => self.flow_start(TokenKind::FlowSequence),
            b'{' => self.flow_start(TokenKind::FlowMapping),
            b']' => self.flow_end(TokenKind::FlowSequenceEnd),
            b'}' => self.flow_end(TokenKind::FlowMappingEnd),
            b',' => {
                self.drop_key()?;
                self.key_allowed = true;
                self.indicator(TokenKind::FlowEntry, 1)
            }
            b'-' if gap => self.block_entry(),
            b'?' if flow || gap => self.key(),
            b':' if flow || gap => self.value(),
            b'*' | b'&' => {
                self.save_key()?;
                self.key_allowed = false;
                let token = self.anchor()?;
                self.tokens.push_back(token);
                Ok(())
            }
            b'!' => {
                self.save_key()?;
                self.key_allowed = false;
                let token = self.tag()?;
                self.tokens.push_back(token);
                Ok(())
            }
            b'|' | b'>' if !flow => {
                self.drop_key()?;
                self.key_allowed = true;
                let token = self.block_scalar()?;
                self.tokens.push_back(token);
                Ok(())
            }
            b'\'' | b'"' => {
                self.save_key()?;
                self.key_allowed = false;
                let token = self.quoted_scalar()?;
                self.tokens.push_back(token);
                Ok(())
            }
            first if is_plain_start(first, flow, self.cursor.peek(1)) => {
                self.save_key()?;
                self.key_allowed = false;
                let token = self.plain_scalar()?;
                self.tokens.push_back(token);
                Ok(())
            }
            _ => Err(fault(
                self.cursor.mark,
                "found character that cannot start any token",
            )),
        }
    }

    fn is_flow(&self) -> bool {
        self.keys.len() > 1
    }

    /// Skips white space and comments. Tabs separate tokens, but do not indent.
    fn skip_to_token(&mut self) {
        loop {
            while self.cursor.peek(0) == b' '
                || (self.cursor.peek(0) == b'\t' && (self.is_flow() || !self.key_allowed))
            {
                self.cursor.skip();
            }
            self.cursor.skip_comment();
            if !self.cursor.is_break(0) {
                return;
            }
            self.cursor.skip_break();
            if !self.is_flow() {
                self.key_allowed = true;
            }
        }
    }

    /// Forgets keys that are too long, or whose line has ended.
    fn forget_old_keys(&mut self) -> Result<(), Fault> {
        let now = self.cursor.mark;
        for key in &mut self.keys {
            if key.possible && (key.mark.line < now.line || key.mark.at + KEY_MAX < now.at) {
                if key.required {
                    return Err(no_colon(key.mark));
                }
                key.possible = false;
            }
        }
        Ok(())
    }

    /// Notes that a key may begin here.
    fn save_key(&mut self) -> Result<(), Fault> {
        if !self.key_allowed {
            return Ok(());
        }
        self.drop_key()?;
        let mark = self.cursor.mark;
        let key = PossibleKey {
            possible: true,
            required: !self.is_flow() && self.indent == signed(mark.column),
            token: self.taken + self.tokens.len(),
            mark,
        };
        if let Some(last) = self.keys.last_mut() {
            *last = key;
        }
        Ok(())
    }

    /// Forgets the key at this level.
    fn drop_key(&mut self) -> Result<(), Fault> {
        match self.keys.last_mut() {
            Some(key) if key.possible && key.required => Err(no_colon(key.mark)),
            Some(key) => {
                key.possible = false;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Begins a block collection if this column is deeper than the last one. `at` is the place of its token in the
    /// queue.
    fn roll(&mut self, mark: Mark, at: usize, kind: TokenKind) {
        let column = signed(mark.column);
        if self.is_flow() || self.indent >= column {
            return;
        }
        self.indents.push(self.indent);
        self.indent = column;
        let token = Token {
            kind,
            start: mark,
            end: mark,
        };
        self.tokens.insert(at.min(self.tokens.len()), token);
    }

    /// Ends the block collections that are deeper than `column`.
    fn unroll(&mut self, column: isize) {
        if self.is_flow() {
            return;
        }
        while self.indent > column {
            self.indent = self.indents.pop().unwrap_or(-1);
            let mark = self.cursor.mark;
            self.tokens.push_back(Token {
                kind: TokenKind::BlockEnd,
                start: mark,
                end: mark,
            });
        }
    }

    /// Adds the token of the next `len` characters.
    fn indicator(&mut self, kind: TokenKind, len: usize) -> Result<(), Fault> {
        let start = self.cursor.mark;
        for _ in 0..len {
            self.cursor.skip();
        }
        let end = self.cursor.mark;
        self.tokens.push_back(Token { kind, start, end });
        Ok(())
    }

    fn flow_start(&mut self, kind: TokenKind) -> Result<(), Fault> {
        self.save_key()?;
        if self.keys.len() > DEPTH {
            let what = format!("nested deeper than {DEPTH}");
            return Err(fault(self.cursor.mark, what));
        }
        self.keys.push(PossibleKey::default());
        self.key_allowed = true;
        self.indicator(kind, 1)
    }

    fn flow_end(&mut self, kind: TokenKind) -> Result<(), Fault> {
        self.drop_key()?;
        if self.is_flow() {
            let _ = self.keys.pop();
        }
        self.key_allowed = false;
        self.indicator(kind, 1)
    }

    fn block_entry(&mut self) -> Result<(), Fault> {
        // In flow style this is an error, which the parser reports.
        if !self.is_flow() {
            if !self.key_allowed {
                let what = "block sequence entries are not allowed in this context";
                return Err(fault(self.cursor.mark, what));
            }
            let end = self.tokens.len();
            self.roll(self.cursor.mark, end, TokenKind::BlockSequence);
        }
        self.drop_key()?;
        self.key_allowed = true;
        self.indicator(TokenKind::BlockEntry, 1)
    }

    /// `?`.
    fn key(&mut self) -> Result<(), Fault> {
        if !self.is_flow() {
            if !self.key_allowed {
                let what = "mapping keys are not allowed in this context";
                return Err(fault(self.cursor.mark, what));
            }
            let end = self.tokens.len();
            self.roll(self.cursor.mark, end, TokenKind::BlockMapping);
        }
        self.drop_key()?;
        self.key_allowed = !self.is_flow();
        self.indicator(TokenKind::Key, 1)
    }

    /// `:`.
    fn value(&mut self) -> Result<(), Fault> {
        let key = self.keys.last().copied().unwrap_or_default();
        if key.possible {
            let at = key.token.saturating_sub(self.taken).min(self.tokens.len());
            let token = Token {
                kind: TokenKind::Key,
                start: key.mark,
                end: key.mark,
            };
            self.tokens.insert(at, token);
            self.roll(key.mark, at, TokenKind::BlockMapping);
            if let Some(key) = self.keys.last_mut() {
                key.possible = false;
            }
            self.key_allowed = false;
        } else {
            if !self.is_flow() {
                if !self.key_allowed {
                    let what = "mapping values are not allowed in this context";
                    return Err(fault(self.cursor.mark, what));
                }
                let end = self.tokens.len();
                self.roll(self.cursor.mark, end, TokenKind::BlockMapping);
            }
            self.key_allowed = !self.is_flow();
        }
        self.indicator(TokenKind::Value, 1)
    }
}

fn is_plain_start(first: u8, flow: bool, second: u8) -> bool {
    match first {
        b'-' => !matches!(second, b' ' | b'\t'),
        b'?' | b':' => !flow,
        _ => !b",[]{}#&*!|>'\"%@`".contains(&first) && !matches!(first, b' ' | b'\t'),
    }
}

fn no_colon(mark: Mark) -> Fault {
    fault(
        mark,
        "while scanning a simple key, could not find expected ':'",
    )
}

fn fault(mark: Mark, what: impl Into<String>) -> Fault {
    Fault {
        line: mark.line,
        what: what.into(),
    }
}
