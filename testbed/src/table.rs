//! Formats a text table: columns are as wide as their widest cell.

use std::fmt::Write;

/// Formats rows under a header; each line is indented by two spaces.
pub fn render<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: [&str; N]| {
        let mut one = String::from(" ");
        for (cell, width) in cells.iter().zip(widths) {
            // Writing to a String cannot fail.
            let _infallible = write!(one, " {cell:<width$} ");
        }
        text.push_str(one.trim_end());
        text.push('\n');
    };
    line(header);
    let rule = widths.map(|width| "-".repeat(width));
    line(rule.each_ref().map(String::as_str));
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["wide cell".to_owned(), "b".to_owned()]];
        let expected = "  a          second\n  ---------  ------\n  wide cell  b\n";
        assert_eq!(render(["a", "second"], &rows), expected);
    }
}
