//! `tojson` as transformers has it: like Python's `json.dumps(value, ensure_ascii=False)`.

use std::io::{self, Write};

use minijinja::{Error, ErrorKind, Value, value::Kwargs};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::budget::Budget;

/// Deepest indent, in spaces: templates use up to 4.
const INDENT_MAX: usize = 16;

/// `value|tojson(indent, separators=(…), ensure_ascii=…)`, charged as it is written.
pub(super) fn tojson(budget: &Budget, value: &Value, indent: Option<usize>, options: &Kwargs) -> Result<Value, Error> {
    let indent = indent.or(options.get("indent")?);
    if indent.is_some_and(|indent| indent > INDENT_MAX) {
        return Err(invalid(format!("indent is over {INDENT_MAX}")));
    }
    let separators: Option<Value> = options.get("separators")?;
    let separator = |index: usize, default: &str| match &separators {
        Some(pair) => pair.get_item_by_index(index).map(|text| text.to_string()),
        None => Ok(default.to_owned()),
    };
    // Characters are never escaped, as everywhere in chat templates.
    options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    let style = Python {
        item: separator(0, if indent.is_some() { "," } else { ", " })?,
        key: separator(1, ": ")?,
        indent,
        depth: 0,
        empty: false,
    };
    let mut charged = Charged { budget, bytes: Vec::new(), refused: None };
    let written = value.serialize(&mut Serializer::with_formatter(&mut charged, style));
    match (charged.refused, written) {
        (Some(refused), _) => Err(refused),
        (None, Err(error)) => Err(invalid(error.to_string())),
        (None, Ok(())) => String::from_utf8(charged.bytes).map(Value::from).map_err(|error| invalid(error.to_string())),
    }
}

fn invalid(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"))
}

/// A buffer that charges what is written to it.
struct Charged<'b> {
    budget: &'b Budget,
    bytes: Vec<u8>,
    refused: Option<Error>,
}

impl Write for Charged<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(refused) = self.budget.charge(bytes.len()) {
            self.refused = Some(refused);
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Python's style of JSON.
struct Python {
    /// Between items.
    item: String,
    /// Between key and value.
    key: String,
    /// Spaces per level; `None` for one line.
    indent: Option<usize>,
    depth: usize,
    /// Whether the innermost collection has no item so far.
    empty: bool,
}

impl Python {
    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.line(writer)?;
        }
        self.empty = false;
        writer.write_all(bracket)
    }

    fn next<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.empty = false;
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.line(writer)
    }

    fn line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        match self.indent {
            Some(indent) => write!(writer, "\n{:1$}", "", indent * self.depth),
            None => Ok(()),
        }
    }
}

impl Formatter for Python {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}
