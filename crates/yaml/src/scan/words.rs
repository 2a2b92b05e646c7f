//! Anchors, aliases, tags and directives.

use super::{Scanner, fault};
use crate::text::{Fault, Mark};
use crate::token::{Token, TokenKind};

/// What may be part of a tag, besides letters, digits, `-`, `_` and `%`.
const URI: &[u8] = b";/?:@&=+$,.!~*'()[]";

impl Scanner<'_> {
    /// `&name` or `*name`.
    pub(super) fn anchor(&mut self) -> Result<Token, Fault> {
        let start = self.cursor.mark;
        let anchor = self.cursor.peek(0) == b'&';
        self.cursor.skip();
        let name = self.cursor.word().to_owned();
        let ended = self.cursor.is_gap(0) || b"?:,]}%@`".contains(&self.cursor.peek(0));
        if name.is_empty() || !ended {
            let what = if anchor { "an anchor" } else { "an alias" };
            let what = format!(
                "while scanning {what}, did not find expected alphabetic or numeric character"
            );
            return Err(fault(start, what));
        }
        let kind = if anchor {
            TokenKind::Anchor(name)
        } else {
            TokenKind::Alias(name)
        };
        Ok(Token {
            kind,
            start,
            end: self.cursor.mark,
        })
    }

    /// `!suffix`, `!handle!suffix`, `!<uri>` or `!`.
    pub(super) fn tag(&mut self) -> Result<Token, Fault> {
        let start = self.cursor.mark;
        let (handle, suffix) = if self.cursor.peek(1) == b'<' {
            self.cursor.skip();
            self.cursor.skip();
            let suffix = self.uri(String::new(), start)?;
            if self.cursor.peek(0) != b'>' {
                return Err(wrong_tag(start, "did not find the expected '>'"));
            }
            self.cursor.skip();
            (String::new(), suffix)
        } else {
            let handle = self.handle(start)?;
            if handle.len() > 1 && handle.ends_with('!') {
                let suffix = self.uri(String::new(), start)?;
                (handle, suffix)
            } else {
                // Not a handle: the beginning of the suffix.
                let head = handle.trim_start_matches('!').to_owned();
                let suffix = self.optional_uri(head, start)?;
                match suffix.as_str() {
                    "" => (suffix, "!".to_owned()),
                    _ => ("!".to_owned(), suffix),
                }
            }
        };
        if !self.cursor.is_gap(0) {
            return Err(wrong_tag(
                start,
                "did not find expected whitespace or line break",
            ));
        }
        Ok(Token {
            kind: TokenKind::Tag(handle, suffix),
            start,
            end: self.cursor.mark,
        })
    }

    /// `!`, `!!` or `!word!`; or the beginning of a tag without a handle.
    fn handle(&mut self, start: Mark) -> Result<String, Fault> {
        if self.cursor.peek(0) != b'!' {
            return Err(wrong_tag(start, "did not find expected '!'"));
        }
        let mut handle = String::new();
        self.cursor.read(&mut handle);
        handle.push_str(self.cursor.word());
        if self.cursor.peek(0) == b'!' {
            self.cursor.read(&mut handle);
        }
        Ok(handle)
    }

    fn uri(&mut self, head: String, start: Mark) -> Result<String, Fault> {
        match self.optional_uri(head, start)? {
            uri if uri.is_empty() => Err(wrong_tag(start, "did not find expected tag URI")),
            uri => Ok(uri),
        }
    }

    fn optional_uri(&mut self, head: String, start: Mark) -> Result<String, Fault> {
        let mut uri = head;
        loop {
            match self.cursor.peek(0) {
                b'%' => uri.push(self.escaped_octets(start)?),
                b if b.is_ascii_alphanumeric() || b"-_".contains(&b) || URI.contains(&b) => {
                    self.cursor.read(&mut uri);
                }
                _ => return Ok(uri),
            }
        }
    }

    /// A character as octets `%XX`.
    fn escaped_octets(&mut self, start: Mark) -> Result<char, Fault> {
        let mut octets = Vec::new();
        while octets.len() < 4 {
            let digit = |ahead| char::from(self.cursor.peek(ahead)).to_digit(16);
            let (b'%', Some(high), Some(low)) = (self.cursor.peek(0), digit(1), digit(2)) else {
                return Err(wrong_tag(start, "did not find URI escaped octet"));
            };
            octets.push(u8::try_from(high * 16 + low).unwrap_or_default());
            for _ in 0..3 {
                self.cursor.skip();
            }
            if let Ok(text) = std::str::from_utf8(&octets)
                && let Some(character) = text.chars().next()
            {
                return Ok(character);
            }
        }
        Err(wrong_tag(start, "found an incorrect UTF-8 octet"))
    }

    /// A line that begins with `%`.
    pub(super) fn directive(&mut self) -> Result<Token, Fault> {
        let start = self.cursor.mark;
        let wrong = |what: &str| fault(start, format!("while scanning a directive, {what}"));
        self.cursor.skip();
        let name = self.cursor.word();
        if !self.cursor.is_gap(0) {
            return Err(wrong("found unexpected non-alphabetical character"));
        }
        self.cursor.skip_blanks();
        let kind = match name {
            "YAML" => {
                let major = self.version(start)?;
                if self.cursor.peek(0) != b'.' {
                    return Err(wrong("did not find expected digit or '.' character"));
                }
                self.cursor.skip();
                TokenKind::Version(major, self.version(start)?)
            }
            "TAG" => {
                let handle = self.handle(start)?;
                if handle != "!" && !handle.ends_with('!') {
                    return Err(wrong("did not find expected '!'"));
                }
                if !self.cursor.is_blank() {
                    return Err(wrong("did not find expected whitespace"));
                }
                self.cursor.skip_blanks();
                let prefix = self.uri(String::new(), start)?;
                if !self.cursor.is_gap(0) {
                    return Err(wrong("did not find expected whitespace or line break"));
                }
                TokenKind::TagDirective(handle, prefix)
            }
            "" => return Err(wrong("could not find expected directive name")),
            _ => return Err(wrong("found unknown directive name")),
        };
        let end = self.cursor.mark;
        self.cursor.skip_blanks();
        self.cursor.skip_comment();
        if !self.cursor.is_line_end() {
            return Err(wrong("did not find expected comment or line break"));
        }
        self.cursor.skip_break();
        Ok(Token { kind, start, end })
    }

    /// A number of at most two digits.
    fn version(&mut self, start: Mark) -> Result<u8, Fault> {
        let mut number = None;
        while let digit @ b'0'..=b'9' = self.cursor.peek(0) {
            let before = number.unwrap_or(0u8);
            if before > 9 {
                let what = "while scanning a %YAML directive, found extremely long version number";
                return Err(fault(start, what));
            }
            number = Some(before * 10 + (digit - b'0'));
            self.cursor.skip();
        }
        number.ok_or_else(|| {
            fault(
                start,
                "while scanning a %YAML directive, did not find expected version number",
            )
        })
    }
}

fn wrong_tag(mark: Mark, what: &str) -> Fault {
    fault(mark, format!("while parsing a tag, {what}"))
}
