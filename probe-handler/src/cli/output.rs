//! Printing: tables, and a standard output that may be closed.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::ValueEnum;
use comfy_table::ContentArrangement;

use super::EXIT_FAILURE;

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
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot write to standard output: {error}")),
    }
}

/// Prints `message` to standard error and returns the exit code of a failure.
pub fn fail(message: &str) -> ExitCode {
    // If standard error fails, there is nowhere to report it.
    let _ = writeln!(io::stderr().lock(), "{message}");
    EXIT_FAILURE.into()
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
    fn control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(&["A"]);
        table.row(["a\u{1b}[2Jb\nc".to_owned()]);
        assert_eq!(table.to_string(), "A\na\u{fffd}[2Jb\u{fffd}c\n");
    }
}
