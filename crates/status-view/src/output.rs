//! Printing: tables, and a standard output that may be closed.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::ContentArrangement;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The exit code of a failure.
pub const EXIT_FAILURE: u8 = 1;

/// Spaces between two columns.
const SPACE: u16 = 2;

/// The values of `-o` for verbs without a wide table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table, for people.
    Table,
    /// JSON, for programs.
    Json,
}

/// Prints to standard output. A reader that has closed the pipe (`| head`) is not an error.
pub fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> ExitCode {
    match self::write(write) {
        Ok(_) => ExitCode::SUCCESS,
        Err(message) => fail(&message),
    }
}

/// Writes to standard output. Returns false if its reader has closed the pipe.
///
/// # Errors
/// Writing failed for another reason: the message.
pub fn write(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<bool, String> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(format!("cannot write to standard output: {error}")),
    }
}

/// Waits for this time, or until the reader of standard output has closed the pipe. Returns whether it has.
pub fn is_closed_within(time: Duration) -> bool {
    use std::os::fd::AsFd as _;
    let out = io::stdout();
    // Errors are always reported, also where no event is requested.
    let mut closed = [PollFd::new(out.as_fd(), PollFlags::empty())];
    let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO);
    poll(&mut closed, timeout).is_ok_and(|ready| ready > 0)
}

/// Prints `message` to standard error and returns the exit code of a failure.
pub fn fail(message: &str) -> ExitCode {
    note(message);
    EXIT_FAILURE.into()
}

/// Prints `message` to standard error.
pub fn note(message: &str) {
    // If standard error fails, there is nowhere to report it.
    let _ = writeln!(io::stderr().lock(), "{message}");
}

/// `text` with its control characters replaced, because a hostile name could use them to control a terminal.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// The width of the terminal on standard output; else variable `COLUMNS` (watch(1) sets it). `None`: it is unlimited.
pub fn width() -> Option<usize> {
    let terminal = terminal_size::terminal_size_of(io::stdout());
    let set = || std::env::var("COLUMNS").ok()?.parse().ok();
    let width = terminal.map(|(width, _)| usize::from(width.0)).or_else(set);
    width.filter(|&width| width > 0)
}

/// `text` in lines of at most `width` characters, broken at spaces; all lines but the first begin with `indent` spaces. A
/// word that does not fit is broken too. Ends with a line break.
pub fn wrapped(text: &str, width: Option<usize>, indent: usize) -> String {
    let text = printable(text);
    let width = width.unwrap_or(usize::MAX).max(indent + 8);
    let mut lines = String::new();
    let mut column = 0;
    for (index, word) in text.split(' ').enumerate() {
        let mut word: Vec<char> = word.chars().collect();
        let space = usize::from(index > 0);
        if index > 0 && column + space + word.len() > width {
            lines.push('\n');
            lines.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else if index > 0 {
            lines.push(' ');
            column += 1;
        }
        while column + word.len() > width {
            let rest = word.split_off(width - column);
            lines.extend(word);
            lines.push('\n');
            lines.extend(std::iter::repeat_n(' ', indent));
            column = indent;
            word = rest;
        }
        column += word.len();
        lines.extend(word);
    }
    lines.push('\n');
    lines
}

/// A table whose columns are as wide as their contents. On a terminal that is too narrow, cells wrap.
#[derive(Debug)]
pub struct Table(comfy_table::Table);

impl Table {
    /// An empty table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        let _ = table
            .load_style(comfy_table::presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_header(headings);
        for column in table.column_iter_mut() {
            column.set_padding((0, SPACE));
        }
        Self(table)
    }

    /// Adds a row; an empty cell shows as `-`.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                printable(&cell)
            }
        });
        let _ = self.0.add_row(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.0.trim_fmt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_content() {
        let mut table = Table::new(&["A", "LONG", "C"]);
        table.row(["wide cell".to_owned(), String::new(), "x".to_owned()]);
        assert_eq!(
            table.to_string(),
            "A          LONG  C\nwide cell  -     x\n"
        );
    }

    #[test]
    fn long_lines_are_broken_at_spaces() {
        assert_eq!(wrapped("one two three", Some(9), 2), "one two\n  three\n");
        assert_eq!(wrapped("one two three", None, 2), "one two three\n");
        assert_eq!(wrapped("  indented", Some(80), 2), "  indented\n");
        assert_eq!(
            wrapped("a abcdefghijkl", Some(10), 2),
            "a\n  abcdefgh\n  ijkl\n"
        );
        assert_eq!(wrapped("", Some(10), 2), "\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(&["A"]);
        table.row(["a\u{1b}[2Jb\nc".to_owned()]);
        assert_eq!(table.to_string(), "A\na\u{fffd}[2Jb\u{fffd}c\n");
    }
}
