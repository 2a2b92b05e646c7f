//! Scalars: plain, quoted, and in block style.

use super::{Scanner, fault, signed};
use crate::text::{Fault, Mark};
use crate::token::{Token, TokenKind};

/// The line breaks between two lines of a scalar.
#[derive(Default)]
struct Breaks {
    first: String,
    others: String,
}

impl Breaks {
    /// Folds them into `text`: a single line break becomes a space.
    fn fold(&mut self, text: &mut String) {
        if self.first.starts_with('\n') {
            if self.others.is_empty() {
                text.push(' ');
            }
        } else {
            text.push_str(&self.first);
        }
        text.push_str(&self.others);
        self.first.clear();
        self.others.clear();
    }
}

/// How the line breaks at the end of a block scalar are treated.
#[derive(Clone, Copy, PartialEq)]
enum Chomping {
    Strip,
    Clip,
    Keep,
}

impl Scanner<'_> {
    fn at_document_marker(&self) -> bool {
        self.cursor.mark.column == 0
            && (self.cursor.is_at("---") || self.cursor.is_at("..."))
            && self.cursor.is_gap(3)
    }

    /// Skips white space after a part of a scalar. Returns the blanks, if they end on the same line. `started`: whether
    /// a line break precedes.
    fn white_space(
        &mut self,
        breaks: &mut Breaks,
        started: &mut bool,
        least: Option<isize>,
    ) -> Result<String, Fault> {
        let mut blanks = String::new();
        while self.cursor.is_blank() || self.cursor.is_break(0) {
            if self.cursor.is_blank() {
                let short = least.is_some_and(|least| signed(self.cursor.mark.column) < least);
                if *started && short && self.cursor.peek(0) == b'\t' {
                    let what = "while scanning a plain scalar, found a tab character that violates indentation";
                    return Err(fault(self.cursor.mark, what));
                }
                if *started {
                    self.cursor.skip();
                } else {
                    self.cursor.read(&mut blanks);
                }
            } else if *started {
                self.cursor.read_break(&mut breaks.others);
            } else {
                blanks.clear();
                self.cursor.read_break(&mut breaks.first);
                *started = true;
            }
        }
        Ok(blanks)
    }

    pub(super) fn plain_scalar(&mut self) -> Result<Token, Fault> {
        let start = self.cursor.mark;
        let mut end = start;
        let least = self.indent.saturating_add(1);
        let mut text = String::new();
        let mut breaks = Breaks::default();
        let mut blanks = String::new();
        let mut broken = false;
        while !self.at_document_marker() && self.cursor.peek(0) != b'#' {
            while !self.cursor.is_gap(0) && !self.ends_plain() {
                if broken {
                    breaks.fold(&mut text);
                    broken = false;
                }
                text.push_str(&blanks);
                blanks.clear();
                self.cursor.read(&mut text);
                end = self.cursor.mark;
            }
            if !self.cursor.is_blank() && !self.cursor.is_break(0) {
                break;
            }
            blanks = self.white_space(&mut breaks, &mut broken, Some(least))?;
            if !self.is_flow() && signed(self.cursor.mark.column) < least {
                break;
            }
        }
        if broken {
            self.key_allowed = true;
        }
        Ok(Token {
            kind: TokenKind::Scalar(text, true),
            start,
            end,
        })
    }

    /// Whether an indicator that ends plain scalars is here.
    fn ends_plain(&self) -> bool {
        match self.cursor.peek(0) {
            b':' => self.cursor.is_gap(1),
            b',' | b'?' | b'[' | b']' | b'{' | b'}' => self.is_flow(),
            _ => false,
        }
    }

    pub(super) fn quoted_scalar(&mut self) -> Result<Token, Fault> {
        let start = self.cursor.mark;
        let quote = self.cursor.peek(0);
        self.cursor.skip();
        let mut text = String::new();
        loop {
            if self.at_document_marker() {
                let what = "while scanning a quoted scalar, found unexpected document indicator";
                return Err(fault(start, what));
            }
            if self.cursor.is_end() {
                let what = "while scanning a quoted scalar, found unexpected end of stream";
                return Err(fault(start, what));
            }
            let mut broken = false;
            while !self.cursor.is_gap(0) {
                match self.cursor.peek(0) {
                    b'\'' if quote == b'\'' && self.cursor.peek(1) == b'\'' => {
                        text.push('\'');
                        self.cursor.skip();
                        self.cursor.skip();
                    }
                    other if other == quote => break,
                    b'\\' if quote == b'"' => {
                        if self.cursor.is_break(1) {
                            self.cursor.skip();
                            self.cursor.skip_break();
                            broken = true;
                            break;
                        }
                        self.escape(start, &mut text)?;
                    }
                    _ => self.cursor.read(&mut text),
                }
            }
            if self.cursor.peek(0) == quote {
                break;
            }
            let mut breaks = Breaks::default();
            let blanks = self.white_space(&mut breaks, &mut broken, None)?;
            if broken {
                breaks.fold_quoted(&mut text);
            } else {
                text.push_str(&blanks);
            }
        }
        self.cursor.skip();
        Ok(Token {
            kind: TokenKind::Scalar(text, false),
            start,
            end: self.cursor.mark,
        })
    }

    /// An escape sequence in a double-quoted scalar.
    fn escape(&mut self, start: Mark, text: &mut String) -> Result<(), Fault> {
        let wrong = |what: &str| fault(start, format!("while parsing a quoted scalar, {what}"));
        let (value, digits) = match self.cursor.peek(1) {
            b'0' => ('\0', 0),
            b'a' => ('\x07', 0),
            b'b' => ('\x08', 0),
            b't' | b'\t' => ('\t', 0),
            b'n' => ('\n', 0),
            b'v' => ('\x0b', 0),
            b'f' => ('\x0c', 0),
            b'r' => ('\r', 0),
            b'e' => ('\x1b', 0),
            same @ (b' ' | b'"' | b'\'' | b'\\') => (char::from(same), 0),
            b'N' => ('\u{85}', 0),
            b'_' => ('\u{a0}', 0),
            b'L' => ('\u{2028}', 0),
            b'P' => ('\u{2029}', 0),
            b'x' => ('\0', 2),
            b'u' => ('\0', 4),
            b'U' => ('\0', 8),
            _ => return Err(wrong("found unknown escape character")),
        };
        self.cursor.skip();
        self.cursor.skip();
        let mut code = 0u32;
        for _ in 0..digits {
            let digit = char::from(self.cursor.peek(0)).to_digit(16);
            let digit = digit.ok_or_else(|| wrong("did not find expected hexadecimal number"))?;
            code = code.wrapping_mul(16).wrapping_add(digit);
            self.cursor.skip();
        }
        text.push(match digits {
            0 => value,
            _ => char::from_u32(code)
                .ok_or_else(|| wrong("found invalid Unicode character escape code"))?,
        });
        Ok(())
    }

    /// A scalar after `|` or `>`.
    pub(super) fn block_scalar(&mut self) -> Result<Token, Fault> {
        let start = self.cursor.mark;
        let literal = self.cursor.peek(0) == b'|';
        self.cursor.skip();
        let (chomping, increment) = self.block_header(start)?;
        let mut end = self.cursor.mark;
        let mut indent = match increment {
            0 => 0,
            increment => self.indent.max(0).saturating_add(increment),
        };
        let mut text = String::new();
        let mut leading = String::new();
        let mut trailing = String::new();
        let mut blank_before = false;
        self.block_breaks(start, &mut indent, &mut trailing, &mut end)?;
        while signed(self.cursor.mark.column) == indent && !self.cursor.is_end() {
            let blank = self.cursor.is_blank();
            if !literal && !blank_before && !blank && leading.starts_with('\n') {
                if trailing.is_empty() {
                    text.push(' ');
                }
            } else {
                text.push_str(&leading);
            }
            leading.clear();
            text.push_str(&trailing);
            trailing.clear();
            blank_before = blank;
            while !self.cursor.is_line_end() {
                self.cursor.read(&mut text);
            }
            end = self.cursor.mark;
            self.cursor.read_break(&mut leading);
            self.block_breaks(start, &mut indent, &mut trailing, &mut end)?;
        }
        if chomping != Chomping::Strip {
            text.push_str(&leading);
        }
        if chomping == Chomping::Keep {
            text.push_str(&trailing);
        }
        Ok(Token {
            kind: TokenKind::Scalar(text, false),
            start,
            end,
        })
    }

    /// What follows `|` or `>` on its line: chomping, and by how much the scalar is indented (0: by its first line).
    fn block_header(&mut self, start: Mark) -> Result<(Chomping, isize), Fault> {
        let wrong = |what: &str| fault(start, format!("while scanning a block scalar, {what}"));
        let mut chomping = None;
        let mut increment = None;
        loop {
            match self.cursor.peek(0) {
                b'+' if chomping.is_none() => chomping = Some(Chomping::Keep),
                b'-' if chomping.is_none() => chomping = Some(Chomping::Strip),
                b'0' if increment.is_none() => {
                    return Err(wrong("found an indentation indicator equal to 0"));
                }
                digit @ b'1'..=b'9' if increment.is_none() => {
                    increment = Some(isize::from(digit - b'0'));
                }
                _ => break,
            }
            self.cursor.skip();
        }
        self.cursor.skip_blanks();
        self.cursor.skip_comment();
        if !self.cursor.is_line_end() {
            return Err(wrong("did not find expected comment or line break"));
        }
        self.cursor.skip_break();
        Ok((
            chomping.unwrap_or(Chomping::Clip),
            increment.unwrap_or_default(),
        ))
    }

    /// Skips indentation and empty lines of a block scalar, and determines `indent` if it is 0.
    fn block_breaks(
        &mut self,
        start: Mark,
        indent: &mut isize,
        breaks: &mut String,
        end: &mut Mark,
    ) -> Result<(), Fault> {
        let mut deepest = 0;
        loop {
            let inside = |column: usize| *indent == 0 || signed(column) < *indent;
            while inside(self.cursor.mark.column) && self.cursor.peek(0) == b' ' {
                self.cursor.skip();
            }
            deepest = deepest.max(signed(self.cursor.mark.column));
            if inside(self.cursor.mark.column) && self.cursor.peek(0) == b'\t' {
                let what = "while scanning a block scalar, found a tab character where an indentation space is expected";
                return Err(fault(start, what));
            }
            if !self.cursor.is_break(0) {
                break;
            }
            self.cursor.read_break(breaks);
            *end = self.cursor.mark;
        }
        if *indent == 0 {
            *indent = deepest.max(self.indent.saturating_add(1)).max(1);
        }
        Ok(())
    }
}

impl Breaks {
    /// Like [`Breaks::fold`], but without a first line break if that was escaped.
    fn fold_quoted(&mut self, text: &mut String) {
        if self.first.is_empty() {
            text.push_str(&self.others);
        } else {
            self.fold(text);
        }
    }
}
