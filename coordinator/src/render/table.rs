//! Plain tables: aligned columns, no borders, nothing that a terminal would have to understand.

use comfy_table::{Cell, CellAlignment, ContentArrangement, presets};
use qmesh_models::terminal::escaped_line;

/// On which side a column is flush.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// `rows` under `columns` (heading and alignment), without a line end after the last row. Rows may be shorter.
pub fn table(columns: &[(&str, Align)], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|(heading, align)| cell(heading, *align)));
    for row in rows {
        table.add_row(row.iter().zip(columns).map(|(text, (_, align))| cell(text, *align)));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Names and values, one pair a line, the values aligned.
pub fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let pairs: Vec<_> = pairs.into_iter().collect();
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{name:width$}  {}", escaped_line(value))).collect::<Vec<_>>().join("\n")
}

fn cell(text: &str, align: Align) -> Cell {
    let alignment = match align {
        Align::Left => CellAlignment::Left,
        Align::Right => CellAlignment::Right,
    };
    Cell::new(escaped_line(text)).set_alignment(alignment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_flush_and_hold_nothing_that_a_terminal_obeys() {
        let rows = [vec!["a".to_owned(), "1 MB".to_owned()], vec!["worker-10".to_owned(), "12.5 MB".to_owned()]];
        let shown = table(&[("worker", Align::Left), ("weights", Align::Right)], rows);
        assert_eq!(shown, " worker     weights\n a             1 MB\n worker-10  12.5 MB");
        let hostile = "x\x1b]0;y\nz".to_owned();
        assert_eq!(table(&[("worker", Align::Left)], [vec![hostile.clone()]]), " worker\n x\\u{1b}]0;y\\nz");
        assert_eq!(pairs([("a", hostile)]), "a  x\\u{1b}]0;y\\nz");
        assert_eq!(pairs([("a", "1".to_owned()), ("bcd", "2".to_owned())]), "a    1\nbcd  2");
    }
}
