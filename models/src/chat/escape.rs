//! Escaping for HTML, which templates may ask for.

use minijinja::{Error, Value};

use super::repr;

/// The text of a value, escaped for HTML unless that was done before.
pub(super) fn escaped(value: &Value) -> Result<String, Error> {
    let text = repr::text(value)?;
    if value.is_safe() {
        return Ok(text.into_owned());
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Ok(out)
}
