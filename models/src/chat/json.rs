//! `tojson` as transformers has it: Python's `json.dumps(value, ensure_ascii=False)`.

use std::borrow::Cow;

use minijinja::{Error, ErrorKind, Value, value::ValueKind};

use super::{
    args::{bound, truth},
    budget::RenderBudget,
    repr,
};

/// Widest indent of a level, in bytes: templates use up to 4 spaces.
const INDENT_BYTES_MAX: usize = 16;

/// `value|tojson(ensure_ascii, indent, separators, sort_keys)`, charged as it is written.
pub(super) fn tojson(budget: &RenderBudget, args: &[Value]) -> Result<Value, Error> {
    let names = ["x", "ensure_ascii", "indent", "separators", "sort_keys"];
    let [value, ascii, indent, separators, sorted] = bound(args, names)?;
    let indent = indent.filter(|indent| !indent.is_none()).map(|indent| margin(&indent)).transpose()?;
    let separators = separators.filter(|separators| !separators.is_none());
    let separator = |index: usize, default: &str| match &separators {
        Some(pair) => pair.get_item_by_index(index).map(|text| text.to_string()),
        None => Ok(default.to_owned()),
    };
    let style = Style {
        item: separator(0, if indent.is_some() { "," } else { ", " })?,
        key: separator(1, ": ")?,
        indent,
        characters: if truth(ascii.as_ref()) { Characters::Ascii } else { Characters::All },
        keys: if truth(sorted.as_ref()) { Keys::Sorted } else { Keys::AsTheyAre },
    };
    let mut writer = Writer { budget, style: &style, out: String::new() };
    writer.value(&value.unwrap_or_default(), 0)?;
    Ok(Value::from(writer.out))
}

/// What a level is indented by: a text, or so many spaces.
fn margin(indent: &Value) -> Result<String, Error> {
    let margin = match indent.as_str() {
        Some(text) => Some(text.to_owned()),
        None => indent.as_i64().map(|width| width.max(0)).and_then(|width| {
            let width = usize::try_from(width).ok()?;
            (width <= INDENT_BYTES_MAX).then(|| " ".repeat(width))
        }),
    };
    let margin = margin.filter(|margin| margin.len() <= INDENT_BYTES_MAX);
    margin.ok_or_else(|| invalid(format!("an indent must be a text or a number, {INDENT_BYTES_MAX} bytes at most")))
}

/// Which characters are written as they are.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Characters {
    Ascii,
    All,
}

/// The order of keys.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Keys {
    Sorted,
    AsTheyAre,
}

/// What of JSON's look can be chosen.
struct Style {
    /// Between items.
    item: String,
    /// Between key and value.
    key: String,
    /// What a level is indented by; `None` for one line.
    indent: Option<String>,
    characters: Characters,
    keys: Keys,
}

struct Writer<'a> {
    budget: &'a RenderBudget,
    style: &'a Style,
    out: String,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > repr::DEPTH_MAX {
            return Err(invalid(format!("a value is nested over {} deep", repr::DEPTH_MAX)));
        }
        match value.kind() {
            ValueKind::None => self.push("null"),
            ValueKind::Bool => self.push(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.push(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.push("[")?;
                let mut empty = true;
                for item in value.try_iter()? {
                    self.next(empty, depth + 1)?;
                    self.value(&item, depth + 1)?;
                    empty = false;
                }
                self.close(empty, depth, "]")
            }
            ValueKind::Map => self.map(value, depth),
            kind @ (ValueKind::Undefined | ValueKind::Bytes | ValueKind::Plain | ValueKind::Invalid | _) => {
                Err(invalid(format!("{kind} is not JSON")))
            }
        }
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.push("{")?;
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.style.keys == Keys::Sorted {
            keys.sort();
        }
        for (index, key) in keys.iter().enumerate() {
            self.next(index == 0, depth + 1)?;
            self.text(&key_text(key)?)?;
            self.push(&self.style.key)?;
            self.value(&value.get_item(key)?, depth + 1)?;
        }
        self.close(keys.is_empty(), depth, "}")
    }

    fn next(&mut self, first: bool, depth: usize) -> Result<(), Error> {
        if !first {
            self.push(&self.style.item)?;
        }
        self.line(depth)
    }

    fn close(&mut self, empty: bool, depth: usize, bracket: &str) -> Result<(), Error> {
        if !empty {
            self.line(depth)?;
        }
        self.push(bracket)
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        let Some(indent) = &self.style.indent else { return Ok(()) };
        self.budget.charge(1 + indent.len() * depth)?;
        self.out.push('\n');
        (0..depth).for_each(|_| self.out.push_str(indent));
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        // Written as escapes a byte takes 6 at most.
        self.budget.charge(text.len() * 2)?;
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\x08' => self.out.push_str("\\b"),
                '\x0c' => self.out.push_str("\\f"),
                c if c < ' ' || !c.is_ascii() && self.style.characters == Characters::Ascii => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }

    fn push(&mut self, text: &str) -> Result<(), Error> {
        self.budget.charge(text.len())?;
        self.out.push_str(text);
        Ok(())
    }
}

/// A key as a text, which Python makes of null, truth values and numbers too.
fn key_text(key: &Value) -> Result<Cow<'_, str>, Error> {
    match (key.as_str(), key.kind()) {
        (Some(text), _) => Ok(Cow::Borrowed(text)),
        (None, ValueKind::None) => Ok(Cow::Borrowed("null")),
        (None, ValueKind::Bool) => Ok(Cow::Borrowed(if key.is_true() { "true" } else { "false" })),
        (None, ValueKind::Number) => Ok(Cow::Owned(number(key))),
        (None, kind) => Err(invalid(format!("{kind} is not a key in JSON"))),
    }
}

fn number(value: &Value) -> String {
    match repr::float(value).as_deref() {
        Some("nan") => "NaN".to_owned(),
        Some("inf") => "Infinity".to_owned(),
        Some("-inf") => "-Infinity".to_owned(),
        Some(number) => number.to_owned(),
        None => value.to_string(),
    }
}

fn invalid(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"))
}
