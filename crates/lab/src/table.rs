//! Lays out rows in columns for people: plain text without borders, which can be pasted anywhere.

use comfy_table::{CellAlignment, Row, Table, presets};

/// The spaces between two columns.
const GAP: u16 = 2;

/// Returns the rows in columns as wide as their content, a line per row. The columns with these `numbers` are aligned to the right.
pub fn plain<R: Into<Row>>(rows: impl IntoIterator<Item = R>, numbers: &[usize]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).add_rows(rows);
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, GAP));
    });
    for index in numbers {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_text() {
        let rows = [["  ok", "published", "1,200", "of 1,200"], ["BROKEN", "applied", "7", ""]];
        assert_eq!(plain(rows, &[2]), "  ok    published  1,200  of 1,200\nBROKEN  applied        7\n");
    }
}
