//! Values as text, as Python's `str` and `repr` write them.

use std::{borrow::Cow, fmt::Write};

use minijinja::{Error, ErrorKind, Value, value::ValueKind};

/// Deepest nesting that is written out, here and as JSON: both recurse. Python's limit is near 1000.
pub(super) const DEPTH_MAX: usize = 400;

/// `str(value)`.
pub(super) fn text(value: &Value) -> Result<Cow<'_, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::new();
    if !value.is_undefined() {
        write_repr(&mut out, value, 0)?;
    }
    Ok(Cow::Owned(out))
}

/// `repr(number)`, where `value` is a float.
pub(super) fn float(value: &Value) -> Option<String> {
    if value.kind() != ValueKind::Number || value.is_integer() {
        return None;
    }
    let number = f64::try_from(value.clone()).ok()?;
    if number.is_nan() {
        return Some("nan".to_owned());
    }
    // Rust writes exponents where Python does, but no sign and no leading zero in them.
    let shown = format!("{number:?}");
    Some(match shown.split_once('e') {
        None => shown,
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
    })
}

fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("a value is nested over {DEPTH_MAX} deep")));
    }
    match value.kind() {
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            for (index, item) in value.try_iter()?.enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write_repr(out, &item, depth + 1)?;
            }
            out.push_str(if value.is_tuple() && value.len() == Some(1) { "," } else { "" });
            out.push(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Plain => out.push_str("<object>"),
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Bytes | ValueKind::Invalid | _ => {
            match float(value) {
                Some(number) => out.push_str(&number),
                None => write!(out, "{value}").expect("writing to a string cannot fail"),
            }
        }
    }
    Ok(())
}

fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        let written = match c {
            '\\' => write!(out, "\\\\"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            c if c == quote => write!(out, "\\{c}"),
            c if printable(c) => write!(out, "{c}"),
            c if c <= '\u{ff}' => write!(out, "\\x{:02x}", u32::from(c)),
            c if c <= '\u{ffff}' => write!(out, "\\u{:04x}", u32::from(c)),
            c => write!(out, "\\U{:08x}", u32::from(c)),
        };
        written.expect("writing to a string cannot fail");
    }
    out.push(quote);
}

/// Whether Python's `repr` leaves a character as it is. Rust's `escape_debug` knows the same Unicode categories, but
/// also escapes a combining character that comes first.
fn printable(c: char) -> bool {
    if c.is_ascii() {
        !c.is_ascii_control()
    } else {
        ['a', c].iter().collect::<String>().escape_debug().nth(1) == Some(c)
    }
}
