//! Splits a manifest into its documents as kubectl does.
//!
//! A text that begins with `{` is JSON: objects one after another. From the first place that is not JSON on, and in
//! every other text, a line `---` ends a document. Only the first document of each such part is read, because `...`
//! may end it early. (kubernetes apimachinery pkg/util/yaml/decoder.go)

use crate::text::{Fault, Mark, check_characters};
use crate::tree::Document;
use crate::{json, parse};

const BYTE_ORDER_MARK: char = '\u{feff}';

/// A document and where it begins.
pub struct Part {
    /// Line, from 1.
    pub line: usize,
    /// Whether there is nothing but comments in it.
    pub blank: bool,
    /// The document, or its error.
    pub document: Result<Document, Fault>,
}

/// All documents of `text`. What is before the first line `---` is a document only if it has content.
pub fn parts(text: &str) -> Vec<Part> {
    let mut mark = Mark {
        line: 1,
        ..Mark::default()
    };
    if text.starts_with(BYTE_ORDER_MARK) {
        mark.at = BYTE_ORDER_MARK.len_utf8();
    }
    let mut parts = Vec::new();
    let mut fault = None;
    let trimmed = rest(text, mark).trim_start();
    if trimmed.starts_with('{') {
        mark.at = text.len() - trimmed.len();
        mark.line += text[..mark.at].matches('\n').count();
        loop {
            let line = mark.line;
            match json::value(text, mark) {
                Ok(None) => return parts,
                Ok(Some((document, end))) => {
                    parts.push(Part {
                        line,
                        blank: false,
                        document: Ok(document),
                    });
                    mark = end;
                }
                Err(json::Error::NotJson(error)) => {
                    // A text that begins like JSON is probably meant to be JSON.
                    let inside = rest(text, mark).trim_start().strip_prefix('{');
                    fault = inside
                        .is_some_and(|inside| inside.trim_start().starts_with('"'))
                        .then_some(error);
                    break;
                }
                Err(json::Error::Exceeds(error)) => {
                    parts.push(Part {
                        line,
                        blank: false,
                        document: Err(error),
                    });
                    return parts;
                }
            }
        }
    }
    // What follows is read as if it began a line.
    if !parts.is_empty() {
        mark = json::skip_space(text, mark);
        mark.column = 0;
    }
    yaml(text, mark, fault, &mut parts);
    parts
}

fn rest(text: &str, mark: Mark) -> &str {
    text.get(mark.at..).unwrap_or_default()
}

fn yaml(text: &str, start: Mark, mut json: Option<Fault>, parts: &mut Vec<Part>) {
    let mut begin = start;
    let mut mark = start;
    let mut after_separator = false;
    for line in rest(text, start).split_inclusive('\n') {
        let next = Mark {
            at: mark.at + line.len(),
            line: mark.line + 1,
            column: 0,
        };
        let separator = line
            .strip_prefix("---")
            .map(str::trim)
            .filter(|_| mark.column == 0);
        if let Some(after) = separator {
            let is_first = mark.at == start.at;
            let valid = after.is_empty() || after.starts_with('#');
            if valid || !is_first {
                push(text, begin..mark, after_separator, json.take(), parts);
                begin = if valid { next } else { mark };
                after_separator = true;
            }
            if !valid {
                let line = mark.line;
                let what = format!("invalid document separator: {after:?} follows ---");
                parts.push(Part {
                    line,
                    blank: false,
                    document: Err(Fault { line, what }),
                });
                begin = next;
            }
        }
        mark = next;
    }
    mark.at = text.len();
    push(text, begin..mark, after_separator, json, parts);
}

/// Adds the documents in `place`.
fn push(
    text: &str,
    place: std::ops::Range<Mark>,
    after_separator: bool,
    json: Option<Fault>,
    parts: &mut Vec<Part>,
) {
    let content = text.get(..place.end.at).unwrap_or_default();
    let blank = rest(content, place.start).lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#')
    });
    if blank && !after_separator {
        return;
    }
    let mut start = place.start;
    if rest(content, start).starts_with(BYTE_ORDER_MARK) {
        start.at += BYTE_ORDER_MARK.len_utf8();
    }
    let document = check_characters(content, start)
        .and_then(|()| parse::document(content, start))
        .map_err(|error| json.unwrap_or(error));
    parts.push(Part {
        line: place.start.line,
        blank,
        document,
    });
}
