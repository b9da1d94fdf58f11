//! Tables and notes, and how they are printed.

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::{peer::Peer, plot::Plot};

/// What a command measured.
#[derive(Debug, Default)]
pub struct Report {
    /// In the order to print.
    pub tables: Vec<ReportTable>,
    /// Sentences below the tables: what is included, and what disturbed.
    pub notes: Vec<String>,
    /// What the medians are of, in the order of the first table's rows: for JSON and the receipt.
    pub samples: Vec<Value>,
    /// The builds that were measured beside, for the receipt.
    pub peers: Vec<Peer>,
    /// For `--plot`.
    pub plots: Vec<Plot>,
}

/// One table.
#[derive(Clone, Debug)]
pub struct ReportTable {
    /// What it shows, units included.
    pub title: String,
    /// Headings, different from each other.
    pub columns: Vec<String>,
    /// As long as `columns` each.
    pub rows: Vec<Vec<Cell>>,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// A name.
    Text(String),
    /// A number, and how many digits after the point are printed; JSON and CSV get all of them.
    Number(f64, usize),
    /// Nothing was measured here.
    Empty,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum ReportFormat {
    /// Markdown.
    Md,
    /// One object with `tables`, `samples` and `notes`.
    Json,
    /// Tables below each other, notes as `#` lines.
    Csv,
}

impl Report {
    /// The report as text that ends with a line end.
    pub fn render(&self, format: ReportFormat) -> String {
        match format {
            ReportFormat::Md => {
                let tables = self.tables.iter().map(ReportTable::markdown);
                let notes = self.notes.iter().map(|note| format!("- {note}\n")).collect();
                tables.chain([notes]).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
            }
            ReportFormat::Json => format!("{:#}\n", self.json()),
            ReportFormat::Csv => {
                let notes = self.notes.iter().map(|note| format!("# {note}\n"));
                self.tables.iter().map(ReportTable::csv).chain(notes).collect()
            }
        }
    }

    /// `{"tables": [{"title", "rows": [{heading: value}]}], "samples": [..], "notes": [..]}`.
    pub fn json(&self) -> Value {
        let tables: Vec<Value> = self.tables.iter().map(ReportTable::json).collect();
        json!({ "tables": tables, "samples": self.samples, "notes": self.notes })
    }
}

impl ReportTable {
    /// A table without rows.
    pub fn new(title: impl Into<String>, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { title: title.into(), columns: columns.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds the row of a geometric mean: `known` values by heading, the mean under "ratio", nothing elsewhere. A mean
    /// over one model would only repeat it, so the caller leaves that out.
    pub fn push_mean(&mut self, known: impl IntoIterator<Item = (&'static str, Cell)>, mean: f64) {
        let known = [("model", "geometric mean".into()), ("ratio", Cell::number(mean, 2))].into_iter().chain(known);
        let mut row = vec![Cell::Empty; self.columns.len()];
        for (heading, cell) in known {
            if let Some(at) = self.columns.iter().position(|column| column == heading) {
                row[at] = cell;
            }
        }
        self.rows.push(row);
    }

    fn markdown(&self) -> String {
        let columns: Vec<Vec<String>> = self
            .columns
            .iter()
            .enumerate()
            .map(|(i, heading)| {
                [heading.clone()].into_iter().chain(self.rows.iter().map(|row| row[i].text())).collect()
            })
            .collect();
        let widths: Vec<usize> =
            columns.iter().map(|c| c.iter().map(|t| t.chars().count()).fold(3, usize::max)).collect();
        let numeric = |i: usize| self.rows.iter().all(|row| !matches!(row[i], Cell::Text(_)));
        let line = |at: usize| {
            let cells = columns.iter().zip(&widths).enumerate().map(|(i, (column, width))| {
                if numeric(i) { format!(" {:>width$} |", column[at]) } else { format!(" {:<width$} |", column[at]) }
            });
            format!("|{}\n", cells.collect::<String>())
        };
        let rules = widths.iter().enumerate().map(|(i, width)| {
            let dashes = "-".repeat(width + 1);
            if numeric(i) { format!("{dashes}:|") } else { format!(":{dashes}|") }
        });
        let rule = format!("|{}\n", rules.collect::<String>());
        let rows: String = (1..=self.rows.len()).map(line).collect();
        format!("{}\n\n{}{rule}{rows}", self.title, line(0))
    }

    fn csv(&self) -> String {
        let line = |cells: Vec<String>| format!("{}\n", cells.iter().map(|c| quoted(c)).collect::<Vec<_>>().join(","));
        let rows: String = self.rows.iter().map(|row| line(row.iter().map(Cell::exact).collect())).collect();
        format!("# {}\n{}{rows}", self.title, line(self.columns.clone()))
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let values = self.columns.iter().cloned().zip(row.iter().map(Cell::json));
            Value::Object(values.collect::<Map<_, _>>())
        });
        json!({ "title": self.title, "rows": rows.collect::<Vec<_>>() })
    }
}

impl Cell {
    /// A number to print with `digits` after the point.
    pub fn number(value: f64, digits: usize) -> Self {
        Self::Number(value, digits)
    }

    /// A number, where there is one.
    pub fn maybe(value: Option<f64>, digits: usize) -> Self {
        value.map_or(Self::Empty, |value| Self::Number(value, digits))
    }

    /// A count.
    pub fn count(value: usize) -> Self {
        Self::Number(value as f64, 0)
    }

    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(value, digits) => format!("{value:.digits$}"),
            Self::Empty => "–".into(),
        }
    }

    fn exact(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(value, _) => value.to_string(),
            Self::Empty => String::new(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Text(text) => text.as_str().into(),
            // A count stays one.
            Self::Number(value, 0) if value.fract() == 0.0 => (*value as i64).into(),
            Self::Number(value, _) => (*value).into(),
            Self::Empty => Value::Null,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut table = ReportTable::new("decode", ["model", "threads", "tok/s"]);
        table.rows.push(vec!["a,b".into(), Cell::count(2), Cell::number(12.3456, 1)]);
        table.rows.push(vec!["c".into(), Cell::count(16), Cell::Empty]);
        Report { tables: vec![table], notes: vec!["calm".into()], ..Report::default() }
    }

    #[test]
    fn markdown_is_aligned() {
        let text = "decode\n\n| model | threads | tok/s |\n|:------|--------:|------:|\n| a,b   |       2 |  12.3 |\n\
                    | c     |      16 |     – |\n\n- calm\n";
        assert_eq!(report().render(ReportFormat::Md), text);
    }

    #[test]
    fn csv_quotes_and_keeps_digits() {
        assert_eq!(
            report().render(ReportFormat::Csv),
            "# decode\nmodel,threads,tok/s\n\"a,b\",2,12.3456\nc,16,\n# calm\n"
        );
    }

    #[test]
    fn json_keeps_types() {
        let row = json!({ "model": "a,b", "threads": 2, "tok/s": 12.3456 });
        let json: Value = serde_json::from_str(&report().render(ReportFormat::Json)).unwrap();
        assert_eq!(json["tables"][0]["rows"][0], row);
        assert_eq!(json["tables"][0]["rows"][1]["tok/s"], Value::Null);
    }
}
