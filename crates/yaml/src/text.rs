//! A position in a text, and the characters that YAML distinguishes.

/// A place in a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Bytes before it.
    pub at: usize,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 0.
    pub column: usize,
}

/// An error at a line of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// Reads a text from front to back. Beyond its end there are zero bytes, which do not occur in YAML.
pub struct Cursor<'a> {
    text: &'a str,
    /// The current place.
    pub mark: Mark,
}

impl<'a> Cursor<'a> {
    /// Begins at `mark` of `text`.
    pub const fn new(text: &'a str, mark: Mark) -> Self {
        Self { text, mark }
    }

    /// The byte `ahead` bytes from here.
    pub fn peek(&self, ahead: usize) -> u8 {
        let byte = self.text.as_bytes().get(self.mark.at + ahead);
        byte.copied().unwrap_or_default()
    }

    /// Whether the text goes on with `word`.
    pub fn is_at(&self, word: &str) -> bool {
        let rest = self.text.as_bytes().get(self.mark.at..);
        rest.is_some_and(|rest| rest.starts_with(word.as_bytes()))
    }

    /// Whether the text ends here.
    pub fn is_end(&self) -> bool {
        self.peek(0) == 0
    }

    /// The length in bytes of the line break `ahead` bytes from here; 0 if there is none. A carriage return and a line
    /// feed are one line break.
    fn break_len(&self, ahead: usize) -> usize {
        match (self.peek(ahead), self.peek(ahead + 1), self.peek(ahead + 2)) {
            (b'\r', b'\n', _) | (0xc2, 0x85, _) => 2,
            (b'\r' | b'\n', ..) => 1,
            (0xe2, 0x80, 0xa8 | 0xa9) => 3,
            _ => 0,
        }
    }

    /// Whether a line break is `ahead` bytes from here.
    pub fn is_break(&self, ahead: usize) -> bool {
        self.break_len(ahead) > 0
    }

    /// Whether a line ends here.
    pub fn is_line_end(&self) -> bool {
        self.is_end() || self.is_break(0)
    }

    /// Whether a space or a tab is here.
    pub fn is_blank(&self) -> bool {
        matches!(self.peek(0), b' ' | b'\t')
    }

    /// Whether white space or the end of the text is `ahead` bytes from here.
    pub fn is_gap(&self, ahead: usize) -> bool {
        matches!(self.peek(ahead), b' ' | b'\t' | 0) || self.is_break(ahead)
    }

    /// Skips a character.
    pub fn skip(&mut self) {
        self.mark.at += match self.peek(0) {
            0..0x80 => 1,
            0x80..0xe0 => 2,
            0xe0..0xf0 => 3,
            0xf0.. => 4,
        };
        self.mark.column += 1;
    }

    /// Skips a line break, if one is here.
    pub fn skip_break(&mut self) {
        let len = self.break_len(0);
        if len > 0 {
            self.mark.at += len;
            self.mark.line += 1;
            self.mark.column = 0;
        }
    }

    /// Skips spaces and tabs.
    pub fn skip_blanks(&mut self) {
        while self.is_blank() {
            self.skip();
        }
    }

    /// Skips a comment, if one is here.
    pub fn skip_comment(&mut self) {
        if self.peek(0) == b'#' {
            while !self.is_line_end() {
                self.skip();
            }
        }
    }

    /// Moves a character to `into`.
    pub fn read(&mut self, into: &mut String) {
        let start = self.mark.at;
        self.skip();
        into.push_str(self.text.get(start..self.mark.at).unwrap_or_default());
    }

    /// Moves a line break to `into`, normalized as YAML requires.
    pub fn read_break(&mut self, into: &mut String) {
        let start = self.mark.at;
        let len = self.break_len(0);
        self.skip_break();
        match len {
            0 => {}
            3 => into.push_str(self.text.get(start..self.mark.at).unwrap_or_default()),
            _ => into.push('\n'),
        }
    }

    /// Skips a word of ASCII letters, digits, `-` and `_`, and returns it.
    pub fn word(&mut self) -> &'a str {
        let start = self.mark.at;
        while self.peek(0).is_ascii_alphanumeric() || matches!(self.peek(0), b'-' | b'_') {
            self.skip();
        }
        self.text.get(start..self.mark.at).unwrap_or_default()
    }
}

/// Checks that `text` has only characters that are allowed in YAML.
///
/// # Errors
/// The first other character.
pub fn check_characters(text: &str, start: Mark) -> Result<(), Fault> {
    let bad = |&(_, c): &(usize, char)| {
        !matches!(c,
            '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{d7ff}'
            | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
    };
    let rest = text.get(start.at..).unwrap_or_default();
    let Some((at, c)) = rest.char_indices().find(bad) else {
        return Ok(());
    };
    let before = rest.get(..at).unwrap_or_default();
    Err(Fault {
        line: start.line + before.matches('\n').count(),
        what: format!("control character {c:?} is not allowed"),
    })
}
