//! Gemma 4: `<|tool_call>call:name{key:value,…}<tool_call|>`. Keys stand bare, texts between marks, and all else is as in JSON.

use serde_json::Value;

use super::super::{
    cursor::{Cursor, Stop},
    family::{Bare, Family, Force},
    head::Head,
};

pub(super) static GEMMA: Family = Family {
    name: "gemma",
    is_taught_by: |source| source.contains("<|tool_call>call:"),
    opens: &["<|tool_call>"],
    bare: Bare::Never,
    head,
    inner: &[QUOTE],
    between: &[],
    closes: &["<tool_call|>"],
    force: Force::Generic,
};

/// What stands on both sides of a text.
const QUOTE: &str = "<|\"|>";

/// The deepest list or object that is read.
const DEPTH_MAX: usize = 64;

fn head(text: &str) -> Result<Head, Stop> {
    let mut cursor = Cursor::new(text);
    cursor.space().expect("call:")?;
    let name = cursor.name()?.to_owned();
    if cursor.peek()? != '{' {
        return Err(Stop::Wrong);
    }
    let mut arguments = String::new();
    value(&mut cursor, &mut arguments, 0)?;
    Ok(Head::Whole { name, arguments, at: cursor.at() })
}

/// Reads a value, and adds it to `json`.
fn value(cursor: &mut Cursor<'_>, json: &mut String, depth: usize) -> Result<(), Stop> {
    if depth == DEPTH_MAX {
        return Err(Stop::Wrong);
    }
    match cursor.peek()? {
        '{' => each(cursor, json, ["{", "}"], |cursor, json| {
            json.push_str(&key(cursor)?.to_string());
            json.push_str(": ");
            value(cursor, json, depth + 1)
        }),
        '[' => each(cursor, json, ["[", "]"], |cursor, json| value(cursor, json, depth + 1)),
        '<' => {
            json.push_str(&quoted(cursor)?.to_string());
            Ok(())
        }
        _ => {
            let text = cursor.until(&[',', '}', ']'])?.trim();
            let read = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
            json.push_str(&read.to_string());
            Ok(())
        }
    }
}

/// Reads what stands between `around`, parted by commas, one by one.
fn each(
    cursor: &mut Cursor<'_>,
    json: &mut String,
    [open, close]: [&str; 2],
    mut one: impl FnMut(&mut Cursor<'_>, &mut String) -> Result<(), Stop>,
) -> Result<(), Stop> {
    cursor.space().expect(open)?;
    json.push_str(open);
    for count in 0.. {
        if cursor.space().skip(close)? {
            break;
        }
        if count > 0 {
            cursor.expect(",")?;
            json.push_str(", ");
        }
        one(cursor, json)?;
    }
    json.push_str(close);
    Ok(())
}

/// A key, and what parts it from its value.
fn key(cursor: &mut Cursor<'_>) -> Result<Value, Stop> {
    if cursor.peek()? == '<' {
        let key = quoted(cursor)?;
        cursor.space().expect(":")?;
        return Ok(key);
    }
    let key = Value::from(cursor.until(&[':', '{', '}', '[', ']', ','])?.trim());
    cursor.expect(":")?;
    Ok(key)
}

fn quoted(cursor: &mut Cursor<'_>) -> Result<Value, Stop> {
    cursor.space().expect(QUOTE)?;
    cursor.past(QUOTE).map(Value::from)
}
