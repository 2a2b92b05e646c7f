//! Formats a text table.

use status_view::output::Table;

/// Formats rows under a header.
pub fn render<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut table = Table::new(&header);
    for row in rows {
        table.row(row.iter().cloned());
    }
    table.to_string()
}
